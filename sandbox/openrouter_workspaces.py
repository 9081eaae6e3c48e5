"""The workspaces of the OpenRouter stand-in, and their budgets."""

from __future__ import annotations

import re
import uuid
from decimal import Decimal
from itertools import pairwise
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.openrouter_account import Account, ApiError, spelled_number, spelled_text
from sandbox.openrouter_requests import (
    Endpoints,
    body_of,
    check_fields,
    is_amount,
    is_list_of,
    is_rate,
    is_switch,
    is_text,
    or_null,
    page,
)

INTERVALS = ("daily", "weekly", "monthly", "lifetime")
"""The intervals, narrowest first; a narrower one must have a lower limit."""


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 500


def _is_slug(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 50 and re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SETTINGS = {
    "name": lambda value: is_text(value) and len(value) <= 100,
    "slug": _is_slug,
    "description": or_null(_is_short),
    "default_text_model": or_null(lambda value: isinstance(value, str)),
    "default_image_model": or_null(lambda value: isinstance(value, str)),
    "default_provider_sort": or_null(lambda value: isinstance(value, str)),
    "is_observability_io_logging_enabled": is_switch,
    "is_observability_broadcast_enabled": is_switch,
    "is_data_discount_logging_enabled": is_switch,
    "io_logging_sampling_rate": is_rate,
    "io_logging_api_key_ids": or_null(is_list_of(_is_number)),
}
BUDGET = {"limit_usd": lambda value: is_amount(value) and value > 0, "include_byok_in_budgets": is_switch}


class WorkspaceApi(Endpoints):
    """The endpoints below `/workspaces`."""

    async def list_workspaces(self, request: Request) -> Response:
        """`GET /workspaces`."""
        account = self.account(request)
        return page(request, [self._shown(account, workspace) for workspace in account.workspaces])

    async def get_workspace(self, request: Request) -> Response:
        """`GET /workspaces/{id}`."""
        account = self.account(request)
        return JSONResponse({"data": self._shown(account, self._named(request, account))})

    async def update_workspace(self, request: Request) -> Response:
        """`PATCH /workspaces/{id}`."""
        account, body = self.account(request), await body_of(request)
        workspace = self._named(request, account)
        check_fields(body, SETTINGS)
        changes = {name: body[name] for name in SETTINGS if name in body}
        self.sandbox.workspace_settings.setdefault(workspace, {}).update(
            changes, updated_at=spelled_text(self.sandbox.now())
        )
        return JSONResponse({"data": self._shown(account, workspace)})

    def _named(self, request: Request, account: Account) -> str:
        wanted = request.path_params["id"]
        for workspace in account.workspaces:
            if wanted in (workspace, self._shown(account, workspace)["slug"]):
                return workspace
        raise ApiError(404, "Workspace not found")

    def _shown(self, account: Account, workspace: str) -> dict[str, Any]:
        first = workspace == account.workspaces[0]
        return {
            "id": workspace,
            "default_guardrail_id": str(uuid.uuid5(uuid.NAMESPACE_OID, workspace)),
            "name": "Default" if first else "Other",
            "slug": "default" if first else f"other-{workspace[:8]}",
            "description": None,
            "default_text_model": None,
            "default_image_model": None,
            "default_provider_sort": None,
            "is_observability_io_logging_enabled": False,
            "is_observability_broadcast_enabled": False,
            "is_data_discount_logging_enabled": False,
            "include_byok_in_budgets": self.sandbox.counts_byok(workspace),
            "io_logging_sampling_rate": 1,
            "io_logging_api_key_ids": None,
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": None,
            "created_by": account.user_id,
            **self.sandbox.workspace_settings.get(workspace, {}),
        }

    async def list_budgets(self, request: Request) -> Response:
        """`GET /workspaces/{id}/budgets`."""
        workspace = self._named(request, self.account(request))
        budgets = self.sandbox.budgets.get(workspace, {})
        data = [self._budget(workspace, interval) for interval in INTERVALS if interval in budgets]
        return JSONResponse({"data": data, "include_byok_in_budgets": self.sandbox.counts_byok(workspace)})

    async def get_budget(self, request: Request) -> Response:
        """`GET /workspaces/{id}/budgets/{interval}`."""
        workspace, interval = self._named(request, self.account(request)), self._interval(request)
        if interval not in self.sandbox.budgets.get(workspace, {}):
            raise ApiError(404, "Resource not found")
        return self._budget_answer(workspace, interval)

    async def put_budget(self, request: Request) -> Response:
        """`PUT /workspaces/{id}/budgets/{interval}`."""
        workspace, interval = self._named(request, self.account(request)), self._interval(request)
        body = await body_of(request)
        check_fields(body, BUDGET, "limit_usd")
        limits = self.sandbox.budgets.get(workspace, {}) | {interval: Decimal(str(body["limit_usd"]))}
        ordered = [limits[name] for name in INTERVALS if name in limits]
        if any(wider <= narrower for narrower, wider in pairwise(ordered)):
            raise ApiError(400, "Budget limits must strictly decrease as the interval narrows")
        self.sandbox.budgets[workspace] = limits
        if "include_byok_in_budgets" in body:
            self.sandbox.byok_in_budgets[workspace] = body["include_byok_in_budgets"]
        return self._budget_answer(workspace, interval)

    async def delete_budget(self, request: Request) -> Response:
        """`DELETE /workspaces/{id}/budgets/{interval}`."""
        workspace, interval = self._named(request, self.account(request)), self._interval(request)
        if self.sandbox.budgets.get(workspace, {}).pop(interval, None) is None:
            raise ApiError(404, "Resource not found")
        return JSONResponse({"deleted": True})

    def _interval(self, request: Request) -> str:
        interval = str(request.path_params["interval"])
        if interval not in INTERVALS:
            raise ApiError(400, "Invalid value for interval")
        return interval

    def _budget_answer(self, workspace: str, interval: str) -> Response:
        counts = self.sandbox.counts_byok(workspace)
        return JSONResponse({"data": self._budget(workspace, interval), "include_byok_in_budgets": counts})

    def _budget(self, workspace: str, interval: str) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{workspace} {interval}")),
            "workspace_id": workspace,
            "limit_usd": spelled_number(self.sandbox.budgets[workspace][interval]),
            "reset_interval": None if interval == "lifetime" else interval,
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
        }
