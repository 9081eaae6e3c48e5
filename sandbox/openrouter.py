"""A stand-in for OpenRouter's management API, based on its API reference.

It keeps state, counts usage, and responds like the real service; where the reference is silent, it is configurable.
"""

from __future__ import annotations

import secrets
import sys
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.openrouter_account import PREFIX, RESETS, Account, ApiError, OpenRouterSandbox, StoredKey, spelled_text
from sandbox.openrouter_analytics import AnalyticsApi
from sandbox.openrouter_lists import ListApi
from sandbox.openrouter_requests import (
    PAGE_SIZE,
    Endpoints,
    bearer,
    body_of,
    check_fields,
    count_in,
    is_amount,
    is_switch,
    is_text,
    or_null,
    page,
)
from sandbox.openrouter_workspaces import WorkspaceApi
from sandbox.server import make_app

KEY_FIELDS: dict[str, Callable[[Any], bool]] = {
    "name": is_text,
    "limit": or_null(is_amount),
    "limit_reset": lambda value: value in RESETS,
    "include_byok_in_limit": is_switch,
    "disabled": is_switch,
    "creator_user_id": or_null(is_text),
    "workspace_id": is_text,
}
"""Validators of the fields in the requests that create and update a key."""


def _check_key(body: dict[str, Any], account: Account) -> None:
    check_fields(body, KEY_FIELDS)
    if "workspace_id" in body and body["workspace_id"] not in account.workspaces:
        raise ApiError(400, "Workspace not found")


class Api(Endpoints):
    """The endpoints of keys, guardrails and models."""

    def key(self, request: Request) -> StoredKey:
        """Return the key in a request's path."""
        account = self.account(request)
        key = self.sandbox.keys.get(request.path_params["hash"])
        if key is None or key.account is not account:
            raise ApiError(404, "API key not found")
        return key

    async def list_keys(self, request: Request) -> Response:
        """`GET /keys`."""
        account, query = self.account(request), request.query_params
        workspace = query.get("workspace_id") or account.workspaces[0]
        if workspace not in account.workspaces and self.sandbox.unknown_workspace_status:
            raise ApiError(self.sandbox.unknown_workspace_status, "Workspace not found")
        wanted = [
            key
            for key in reversed(self.sandbox.keys.values())
            if key.account is account
            and key.workspace_id == workspace
            and (not key.disabled or query.get("include_disabled") == "true")
            and (
                key.expires_at is None or key.expires_at > self.sandbox.now() or query.get("include_expired") == "true"
            )
        ]
        offset = count_in(request, "offset", 0, 0, sys.maxsize)
        return JSONResponse({"data": [self.sandbox.show(key) for key in wanted[offset : offset + PAGE_SIZE]]})

    async def create_key(self, request: Request) -> Response:
        """`POST /keys`."""
        account = self.account(request)
        body = await body_of(request)
        if "name" not in body:
            raise ApiError(400, "name is required")
        _check_key(body, account)
        key = self.sandbox.add_key(account, body)
        shown = self.sandbox.show(key)
        if self.sandbox.plaintext_in == "data":
            return JSONResponse({"data": {**shown, "key": key.secret}}, 201)
        return JSONResponse({"data": shown, "key": key.secret}, 201)

    async def get_key(self, request: Request) -> Response:
        """`GET /keys/{hash}`."""
        return JSONResponse({"data": self.sandbox.show(self.key(request))})

    async def update_key(self, request: Request) -> Response:
        """`PATCH /keys/{hash}`."""
        key = self.key(request)
        body = await body_of(request)
        if not body:
            raise ApiError(400, "At least one field must be given")
        _check_key(body, key.account)
        for name in ("name", "disabled", "limit_reset", "include_byok_in_limit", "workspace_id"):
            if name in body:
                setattr(key, name, body[name])
        if "limit" in body:
            key.limit = None if body["limit"] is None else Decimal(str(body["limit"]))
        key.updated_at = self.sandbox.now()
        return JSONResponse({"data": self.sandbox.show(key)})

    async def delete_key(self, request: Request) -> Response:
        """`DELETE /keys/{hash}`."""
        self.sandbox.delete_key(self.key(request))
        return JSONResponse({"deleted": True})

    async def current_key(self, request: Request) -> Response:
        """`GET /key`."""
        token = bearer(request)
        account = self.managed_by(token)
        if account is not None:
            ends = account.management_keys_expire.get(token)
            return JSONResponse({"data": self.sandbox.show_itself(None, account, ends)})
        key = self.sandbox.use(token)
        return JSONResponse({"data": self.sandbox.show_itself(key, key.account)})

    async def chat(self, request: Request) -> Response:
        """`POST /chat/completions`; with `?byok=<credential>`, it requires that credential."""
        sandbox = self.sandbox
        try:
            key = self._payer(request)
        except ApiError:
            sandbox.requests_failed += 1
            raise
        body = await body_of(request)
        key.last_used_at = sandbox.now()
        key.uses.append((sandbox.now(), request.headers.get("X-Title"), str(body.get("model", "sandbox"))))
        (key.byok_spent if self._credential(request) else key.spent).append((sandbox.now(), sandbox.cost))
        message = {"role": "assistant", "content": "Hello from the stand-in."}
        return JSONResponse(
            {
                "id": f"gen-{secrets.token_hex(8)}",
                "object": "chat.completion",
                "created": int(sandbox.now().timestamp()),
                "model": body.get("model", "sandbox"),
                "system_fingerprint": None,  # required by the SDK, absent from the API reference
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    def _credential(self, request: Request) -> bool | str:
        return request.query_params.get("byok") or self.sandbox.byok

    def _payer(self, request: Request) -> StoredKey:
        key = self.sandbox.use(bearer(request))
        remaining = self.sandbox.remaining(key)
        credential = self._credential(request)
        if isinstance(credential, str) and not self.sandbox.serves(credential, key.hash, key.workspace_id):
            raise ApiError(403, "This API key may not use the provider key")
        if self.sandbox.workspace_is_spent(key.workspace_id):
            raise ApiError(403, "Workspace budget exceeded")
        counts = key.include_byok_in_limit or not credential
        if counts and remaining is not None and remaining < self.sandbox.cost:
            raise ApiError(self.sandbox.over_limit_status, "Key limit exceeded")
        return key

    async def create_guardrail(self, request: Request) -> Response:
        """`POST /guardrails`."""
        account, body = self.account(request), await body_of(request)
        if not is_text(body.get("name")):
            raise ApiError(400, "name is required")
        if body.get("limit_usd") is not None and not is_amount(body["limit_usd"]):
            raise ApiError(400, "Invalid value for limit_usd")
        workspace = body.get("workspace_id", account.workspaces[0])
        if workspace not in account.workspaces:
            raise ApiError(400, "Workspace not found")
        guardrail = {
            "description": None,
            "include_byok_in_budgets": False,
            **body,
            "id": str(uuid.uuid4()),
            "created_at": spelled_text(self.sandbox.now()),
            "updated_at": None,
            "workspace_id": workspace,
        }
        self.sandbox.guardrails[guardrail["id"]] = guardrail
        return JSONResponse({"data": guardrail}, 201)

    async def list_guardrails(self, request: Request) -> Response:
        """`GET /guardrails`."""
        account = self.account(request)
        workspace = request.query_params.get("workspace_id") or account.workspaces[0]
        mine = workspace in account.workspaces
        found = [one for one in self.sandbox.guardrails.values() if mine and one["workspace_id"] == workspace]
        return page(request, found)

    async def get_guardrail(self, request: Request) -> Response:
        """`GET /guardrails/{id}`."""
        return JSONResponse({"data": self.sandbox.guardrails[self._guardrail(request)]})

    def _guardrail(self, request: Request) -> str:
        account = self.account(request)
        found = self.sandbox.guardrails.get(str(request.path_params["id"]))
        if found is None or found["workspace_id"] not in account.workspaces:
            raise ApiError(404, "Guardrail not found")
        return str(found["id"])

    async def list_assignments(self, request: Request) -> Response:
        """`GET /guardrails/{id}/assignments/keys`."""
        guardrail = self._guardrail(request)
        found = [key for key in self.sandbox.keys.values() if key.guardrail_id == guardrail]
        return page(request, [self._assignment(key) for key in found])

    async def list_all_assignments(self, request: Request) -> Response:
        """`GET /guardrails/assignments/keys`."""
        account = self.account(request)
        found = [key for key in self.sandbox.keys.values() if key.account is account and key.guardrail_id is not None]
        return page(request, [self._assignment(key) for key in found])

    @staticmethod
    def _assignment(key: StoredKey) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, key.hash)),
            "guardrail_id": key.guardrail_id,
            "key_hash": key.hash,
            "key_name": key.name,
            "key_label": key.label,
            "assigned_by": key.creator_user_id,
            "created_at": spelled_text(key.created_at),
        }

    async def assign(self, request: Request) -> Response:
        """`POST /guardrails/{id}/assignments/keys`; a key has at most one guardrail."""
        guardrail = self._guardrail(request)
        keys = await self._named_keys(request)
        counted = [key for key in keys if self.sandbox.counts_reassigned or key.guardrail_id != guardrail]
        for key in keys:
            key.guardrail_id = guardrail
        return JSONResponse({"assigned_count": len(counted)})

    async def unassign(self, request: Request) -> Response:
        """`POST /guardrails/{id}/assignments/keys/remove`; a key with another guardrail keeps it."""
        guardrail = self._guardrail(request)
        keys = [key for key in await self._named_keys(request) if key.guardrail_id == guardrail]
        for key in keys:
            key.guardrail_id = None
        return JSONResponse({"unassigned_count": len(keys)})

    async def _named_keys(self, request: Request) -> list[StoredKey]:
        account, hashes = self.account(request), (await body_of(request)).get("key_hashes")
        if not isinstance(hashes, list) or not hashes or not all(map(is_text, hashes)):
            raise ApiError(400, "key_hashes must name at least one key")
        found = (self.sandbox.keys.get(key_hash) for key_hash in dict.fromkeys(hashes))
        return [key for key in found if key is not None and key.account is account]

    async def change_options(self, request: Request) -> Response:
        """`PATCH /_sandbox/options`: change the stand-in's options from another process."""
        body = await body_of(request)
        self.sandbox.change(body)
        return JSONResponse({"changed": sorted(body)})


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    body = {"error": {"code": error.status, "message": error.message}}
    return JSONResponse(body, error.status, error.headers)


async def _answer_unrouted(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    body = {"error": {"code": error.status_code, "message": error.detail}}
    return JSONResponse(body, error.status_code, error.headers)


def _where_not_lacking(
    api: Api, path: str, endpoint: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    part = path.split("/")[1]

    async def answered(request: Request) -> Response:
        if status := api.sandbox.lacks.get(part):
            api.account(request)
            raise ApiError(status, "Not found" if status == 404 else "Only management keys can perform this operation")
        return await endpoint(request)

    return answered


def create_app(sandbox: OpenRouterSandbox | None = None) -> Starlette:
    """Return the stand-in's application, with the given state or a new one; the API is below `/api/v1`."""
    api = Api(sandbox or OpenRouterSandbox())
    lists, workspaces, analytics = ListApi(api.sandbox), WorkspaceApi(api.sandbox), AnalyticsApi(api.sandbox)
    paths: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/keys", api.list_keys),
        ("POST", "/keys", api.create_key),
        ("GET", "/keys/{hash}", api.get_key),
        ("PATCH", "/keys/{hash}", api.update_key),
        ("DELETE", "/keys/{hash}", api.delete_key),
        ("GET", "/key", api.current_key),
        ("POST", "/chat/completions", api.chat),
        ("GET", "/workspaces", workspaces.list_workspaces),
        ("GET", "/workspaces/{id}", workspaces.get_workspace),
        ("PATCH", "/workspaces/{id}", workspaces.update_workspace),
        ("GET", "/workspaces/{id}/budgets", workspaces.list_budgets),
        ("GET", "/workspaces/{id}/budgets/{interval}", workspaces.get_budget),
        ("PUT", "/workspaces/{id}/budgets/{interval}", workspaces.put_budget),
        ("DELETE", "/workspaces/{id}/budgets/{interval}", workspaces.delete_budget),
        ("GET", "/byok", lists.list_credentials),
        ("POST", "/byok", lists.create_credential),
        ("GET", "/byok/{id}", lists.get_credential),
        ("PATCH", "/byok/{id}", lists.update_credential),
        ("DELETE", "/byok/{id}", lists.delete_credential),
        ("GET", "/observability/destinations", lists.list_broadcasts),
        ("POST", "/observability/destinations", lists.create_broadcast),
        ("GET", "/observability/destinations/{id}", lists.get_broadcast),
        ("PATCH", "/observability/destinations/{id}", lists.update_broadcast),
        ("DELETE", "/observability/destinations/{id}", lists.delete_broadcast),
        ("GET", "/analytics/meta", analytics.meta),
        ("POST", "/analytics/query", analytics.query),
        ("GET", "/guardrails", api.list_guardrails),
        ("POST", "/guardrails", api.create_guardrail),
        ("GET", "/guardrails/assignments/keys", api.list_all_assignments),
        ("GET", "/guardrails/{id}", api.get_guardrail),
        ("GET", "/guardrails/{id}/assignments/keys", api.list_assignments),
        ("POST", "/guardrails/{id}/assignments/keys", api.assign),
        ("POST", "/guardrails/{id}/assignments/keys/remove", api.unassign),
    ]
    routes = [
        Route(PREFIX + path, _where_not_lacking(api, path, endpoint), methods=[method])
        for method, path, endpoint in paths
    ]
    routes.append(Route("/_sandbox/options", api.change_options, methods=["PATCH"]))
    app = make_app(routes, exception_handlers={ApiError: _answer_error, HTTPException: _answer_unrouted})
    app.state.sandbox = api.sandbox
    return app
