"""BYOK credentials and broadcast destinations of the OpenRouter stand-in, which can be restricted to some keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.openrouter_account import Account, ApiError, spelled_text
from sandbox.openrouter_requests import (
    Endpoints,
    body_of,
    check_fields,
    is_any_text,
    is_list_of,
    is_object,
    is_one_of,
    is_rate,
    is_switch,
    is_text,
    is_uuid,
    or_null,
    page,
)

MAX_LISTED = 100
MAX_OF_A_TYPE = 5
TYPES = frozenset({
    "arize", "braintrust", "clickhouse", "datadog", "grafana", "langfuse", "langsmith", "newrelic", "opik",
    "otel-collector", "posthog", "ramp", "s3", "sentry", "snowflake", "weave", "webhook",
})  # fmt: skip
PROVIDERS = frozenset({
    "ai21", "aion-labs", "akashml", "alibaba", "amazon-bedrock", "amazon-nova", "ambient", "anthropic", "arcee-ai",
    "atlas-cloud", "avian", "azure", "baidu", "baseten", "black-forest-labs", "byteplus", "cerebras", "chutes",
    "cirrascale", "clarifai", "cloudflare", "cohere", "coreweave", "crusoe", "darkbloom", "databricks", "decart",
    "deepgram", "deepinfra", "deepseek", "dekallm", "digitalocean", "featherless", "fireworks", "fish-audio",
    "friendli", "gmicloud", "google-ai-studio", "google-vertex", "groq", "heygen", "inception", "inceptron",
    "inferact-vllm", "inference-net", "infermatic", "inflection", "io-net", "ionstream", "krea", "liquid", "makora",
    "mancer", "mara", "meta", "minimax", "mistral", "modal", "modelrun", "modular", "moonshotai", "morph",
    "ncompass", "nebius", "nex-agi", "nextbit", "novita", "nvidia", "open-inference", "openai", "parasail",
    "perceptron", "perplexity", "phala", "poolside", "quiver", "recraft", "reka", "relace", "runway",
    "sail-research", "sakana", "sakana-ai", "sambanova", "seed", "siliconflow", "sourceful", "stepfun",
    "streamlake", "switchpoint", "tencent", "tenstorrent", "thinkingmachines", "together", "upstage", "venice",
    "wafer", "wandb", "wandb-legacy", "xai", "xiaomi", "z-ai",
})  # fmt: skip
Validator = Callable[[Any], bool]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-f0-9]{64}", value) is not None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 255


def _is_filter(value: Any) -> bool:
    groups = value.get("groups") if isinstance(value, dict) else None
    return isinstance(groups, list) and all(isinstance(group, dict) and "rules" in group for group in groups)


CREDENTIAL: dict[str, Validator] = {
    "allowed_api_key_hashes": or_null(is_list_of(_is_hash, 1, MAX_LISTED)),
    "allowed_models": or_null(is_list_of(is_any_text, 0, MAX_LISTED)),
    "allowed_user_ids": or_null(is_list_of(is_any_text, 0, MAX_LISTED)),
    "disabled": is_switch,
    "is_fallback": is_switch,
    "key": is_text,
    "name": or_null(_is_name),
}
NEW_CREDENTIAL = {**CREDENTIAL, "provider": is_one_of(PROVIDERS), "workspace_id": is_uuid}
BROADCAST: dict[str, Validator] = {
    "api_key_hashes": or_null(is_list_of(is_any_text, 1)),
    "broadcast_generation_cost": is_switch,
    "broadcast_generation_identity": is_switch,
    "broadcast_generation_request_context": is_switch,
    "config": is_object,
    "enabled": is_switch,
    "filter_rules": or_null(_is_filter),
    "name": is_any_text,
    "privacy_mode": is_switch,
    "sampling_rate": is_rate,
}
NEW_BROADCAST = {**BROADCAST, "type": is_one_of(TYPES), "workspace_id": is_uuid}


def _masked(secret: str) -> str:
    return f"{secret[:3]}...{secret[-4:]}"


def _masked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    def shown(name: str, value: Any) -> Any:
        secret = isinstance(value, str) and re.search("key|secret|token|password", name, re.IGNORECASE)
        return _masked(value) if secret else value

    return {name: shown(name, value) for name, value in config.items()}


class ListApi(Endpoints):
    """The endpoints below `/byok` and `/observability/destinations`."""

    async def list_credentials(self, request: Request) -> Response:
        """`GET /byok`; a credential without a workspace applies to every workspace."""
        account = self.account(request)
        places = (self.workspace_in(request, account), None)
        provider = request.query_params.get("provider")
        found = [
            one
            for one in self.sandbox.credentials.values()
            if one["account"] is account and one["workspace_id"] in places and provider in (None, one["provider"])
        ]
        return page(request, [self._shown(one) for one in found])

    async def create_credential(self, request: Request) -> Response:
        """`POST /byok`."""
        account, body = self.account(request), await body_of(request)
        check_fields(body, NEW_CREDENTIAL, "provider", "key")
        self._check_hashes(account, body.get("allowed_api_key_hashes"))
        credential = self.sandbox.add_credential(
            account,
            self._workspace(account, body),
            provider=body["provider"],
            label=_masked(body["key"]),
            **{name: body[name] for name in CREDENTIAL if name in body and name != "key"},
        )
        return JSONResponse({"data": self._shown(credential)}, 201)

    async def get_credential(self, request: Request) -> Response:
        """`GET /byok/{id}`."""
        return JSONResponse({"data": self._shown(self._credential(request))})

    async def update_credential(self, request: Request) -> Response:
        """`PATCH /byok/{id}`; a list is replaced as a whole."""
        credential, body = self._credential(request), await body_of(request)
        check_fields(body, CREDENTIAL)
        self._check_hashes(credential["account"], body.get("allowed_api_key_hashes"))
        credential.update({name: body[name] for name in CREDENTIAL if name in body and name != "key"})
        if "key" in body:
            credential["label"] = _masked(body["key"])
        return JSONResponse({"data": self._shown(credential)})

    async def delete_credential(self, request: Request) -> Response:
        """`DELETE /byok/{id}`."""
        del self.sandbox.credentials[self._credential(request)["id"]]
        return JSONResponse({"deleted": True})

    def _credential(self, request: Request) -> dict[str, Any]:
        return self._one(request, self.sandbox.credentials)

    async def list_broadcasts(self, request: Request) -> Response:
        """`GET /observability/destinations`."""
        account = self.account(request)
        workspace = self.workspace_in(request, account)
        found = [
            one
            for one in self.sandbox.broadcasts.values()
            if one["account"] is account and one["workspace_id"] == workspace
        ]
        return page(request, [self._shown(one) for one in found])

    async def create_broadcast(self, request: Request) -> Response:
        """`POST /observability/destinations`."""
        account, body = self.account(request), await body_of(request)
        check_fields(body, NEW_BROADCAST, "type", "name", "config")
        self._check_hashes(account, body.get("api_key_hashes"))
        workspace = self._workspace(account, body)
        alike = [one for one in self.sandbox.broadcasts.values() if one["type"] == body["type"]]
        if len([one for one in alike if one["workspace_id"] == workspace]) >= MAX_OF_A_TYPE:
            raise ApiError(400, "Too many destinations of this type")
        broadcast = self.sandbox.add_broadcast(
            account, workspace, type=body["type"], **{name: body[name] for name in BROADCAST if name in body}
        )
        return JSONResponse({"data": self._shown(broadcast)}, 201)

    async def get_broadcast(self, request: Request) -> Response:
        """`GET /observability/destinations/{id}`."""
        return JSONResponse({"data": self._shown(self._broadcast(request))})

    async def update_broadcast(self, request: Request) -> Response:
        """`PATCH /observability/destinations/{id}`; a list is replaced as a whole."""
        broadcast, body = self._broadcast(request), await body_of(request)
        check_fields(body, BROADCAST)
        self._check_hashes(broadcast["account"], body.get("api_key_hashes"))
        config = {**broadcast["config"], **body.get("config", {})}
        broadcast.update({name: body[name] for name in BROADCAST if name in body})
        broadcast.update(config=config, updated_at=spelled_text(self.sandbox.now()))
        return JSONResponse({"data": self._shown(broadcast)})

    async def delete_broadcast(self, request: Request) -> Response:
        """`DELETE /observability/destinations/{id}`."""
        del self.sandbox.broadcasts[self._broadcast(request)["id"]]
        return JSONResponse({"deleted": True})

    def _broadcast(self, request: Request) -> dict[str, Any]:
        return self._one(request, self.sandbox.broadcasts)

    def _one(self, request: Request, all_of_them: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        account, found = self.account(request), all_of_them.get(request.path_params["id"])
        if found is None or found["account"] is not account:
            raise ApiError(404, "Resource not found")
        return found

    def _workspace(self, account: Account, body: Mapping[str, Any]) -> str:
        workspace = str(body.get("workspace_id", account.workspaces[0]))
        if workspace not in account.workspaces:
            raise ApiError(400, "Workspace not found")
        return workspace

    def _check_hashes(self, account: Account, hashes: list[str] | None) -> None:
        live = {key.hash for key in self.sandbox.live_keys() if key.account is account}
        if lag := self.sandbox.list_lag:
            live -= {key.hash for key in self.sandbox.keys.values() if self.sandbox.now() - key.created_at < lag}
        if not set(hashes or ()) <= live:
            raise ApiError(400, "One or more API keys do not belong to your account")

    @staticmethod
    def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in record.items() if name != "account"}
        return shown if "config" not in shown else {**shown, "config": _masked_config(shown["config"])}
