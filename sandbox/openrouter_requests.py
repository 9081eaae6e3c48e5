"""The base of the OpenRouter stand-in's endpoints: authentication, and parsing of bodies, queries and pages."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.openrouter_account import Account, ApiError, OpenRouterSandbox

PAGE_SIZE = 100


def bearer(request: Request) -> str:
    """Return the key in a request's Authorization header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ApiError(401, "Missing Authentication header")
    return token


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise ApiError(400, "Invalid JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, "Invalid request parameters")
    return body


def check_fields(body: Mapping[str, Any], fields: Mapping[str, Callable[[Any], bool]], *required: str) -> None:
    """Refuse a body that lacks a required field, or has an invalid one."""
    for name in required:
        if name not in body:
            raise ApiError(400, f"{name} is required")
    for name, holds in fields.items():
        if name in body and not holds(body[name]):
            raise ApiError(400, f"Invalid value for {name}")


def is_amount(value: Any) -> bool:
    """Return whether a value is an amount in USD; the comparison also rejects NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def is_text(value: Any) -> bool:
    """Return whether a value is a non-empty text."""
    return isinstance(value, str) and value != ""


def is_any_text(value: Any) -> bool:
    """Return whether a value is a text, possibly an empty one."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """Return whether a value is a JSON object."""
    return isinstance(value, dict)


def is_switch(value: Any) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def is_uuid(value: Any) -> bool:
    """Return whether a value is a UUID as text."""
    try:
        return isinstance(value, str) and str(UUID(value)) == value.lower()
    except ValueError:
        return False


def is_rate(value: Any) -> bool:
    """Return whether a value is a sampling rate."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0001 <= value <= 1


def or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a validator that also permits null."""
    return lambda value: value is None or holds(value)


def is_one_of(texts: Collection[str]) -> Callable[[Any], bool]:
    """Return a validator for one of some texts."""
    return lambda value: isinstance(value, str) and value in texts


def is_list_of(holds: Callable[[Any], bool], least: int = 0, most: int = sys.maxsize) -> Callable[[Any], bool]:
    """Return a validator for a list: its length and its items."""
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(holds, value))


def count_in(request: Request, name: str, default: int, low: int, high: int) -> int:
    """Return a number in a request's query."""
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise ApiError(400, f"Invalid value for {name}")
    return int(text)


def page(request: Request, found: Sequence[dict[str, Any]]) -> Response:
    """Return the requested page of a list."""
    offset, limit = count_in(request, "offset", 0, 0, sys.maxsize), count_in(request, "limit", 50, 1, PAGE_SIZE)
    return JSONResponse({"data": found[offset : offset + limit], "total_count": len(found)})


class Endpoints:
    """Endpoints of the stand-in.

    Args:
        sandbox: The stand-in's state.
    """

    def __init__(self, sandbox: OpenRouterSandbox) -> None:
        self.sandbox = sandbox

    def account(self, request: Request) -> Account:
        """Return the account of a request's management key."""
        token = bearer(request)
        managed = self.managed_by(token)
        if managed is not None:
            return managed
        if token in self.sandbox.by_secret:
            raise ApiError(self.sandbox.not_management_status, "Only management keys can perform this operation")
        raise ApiError(401, "User not found.")

    def managed_by(self, token: str) -> Account | None:
        """Return the account of a management key; `None` for any other key."""
        for account in self.sandbox.accounts:
            ends = account.management_keys_expire.get(token)
            if token in account.management_keys and (ends is None or ends > self.sandbox.now()):
                return account
        return None

    def workspace_in(self, request: Request, account: Account) -> str:
        """Return the workspace in a request's query; the default one if it names none."""
        workspace = request.query_params.get("workspace_id") or account.workspaces[0]
        if workspace not in account.workspaces:
            raise ApiError(400, "Workspace not found")
        return workspace
