"""The client of OpenRouter's management API.

Source of every path, field and status: OpenRouter's API reference, "API Keys", "Guardrails" and "Workspaces"
(https://openrouter.ai/docs/api-reference/api-keys/list).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, SecretStr

from blocks.errors import (
    ConfigurationError,
    ForbiddenError,
    KeyRotationError,
    NotFoundError,
    RejectedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JsonHttp
from blocks.openrouter.answers import Assigned, Assignment, Page, Unassigned, Workspace, meaning_of, parse
from blocks.openrouter.keys import PAYMENT_REQUIRED, ApiKey, CreatedKey, CurrentKey, KeyRequest
from blocks.redaction import redacted

M = TypeVar("M", bound=BaseModel)

PAGE_SIZE = 100
"""The maximum number of records on a page; the list of keys has no parameter for it."""
MAX_PAGES = 1_000
"""The maximum number of pages of a list: 100,000 records."""


class OpenRouterClient:
    """OpenRouter's management API over one HTTP connection.

    Args:
        management_key: The management key.
        base_url: The API's base URL.
        connection: The connection's name in messages; empty if there is only one.
        transport: A transport for tests; real sockets by default.
        sleep: Sleeps for a number of seconds between attempts.
    """

    def __init__(
        self,
        management_key: SecretStr,
        base_url: str,
        *,
        connection: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._management_key = management_key
        service = f"OpenRouter (connection {connection})" if connection else "OpenRouter"
        self._http = JsonHttp(service, base_url, transport=transport, sleep=sleep, explain=meaning_of)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.__aexit__(None, None, None)

    async def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create a key; the call is repeated only if the previous attempt has certainly not created one.

        Args:
            request: The key's name and settings.

        Returns:
            The key with its plaintext.

        Raises:
            ServiceError: The call failed; `outcome_unknown` says whether a key may have been created.
        """
        doing = "creating a key"
        answer = await self._manage("POST", "keys", doing, json_body=request.body(), repeatable=False)
        data = answer.get("data")
        # The API reference shows the plaintext next to `data`, OpenRouter's cookbook inside it.
        secret = answer.get("key") or (data.get("key") if isinstance(data, dict) else None)
        if not isinstance(secret, str) or not secret:
            raise UnexpectedAnswerError(f"OpenRouter's answer lacks the field key while {doing}.")
        key = parse(ApiKey, data, doing)
        if secret in key.hash + key.label:
            raise UnexpectedAnswerError(
                f"OpenRouter's answer shows the key's plaintext where none belongs while {doing}."
            )
        return CreatedKey(SecretStr(secret), key)

    async def get_key(self, key_hash: str) -> ApiKey:
        """Read one key.

        Args:
            key_hash: The key's hash at OpenRouter.

        Returns:
            The key.

        Raises:
            NotFoundError: The key does not exist in this account.
            ServiceError: The call failed.
        """
        doing = "reading a key"
        return parse(ApiKey, (await self._manage("GET", _path(key_hash), doing)).get("data"), doing)

    async def list_keys(self, workspace_id: str | None = None) -> AsyncIterator[ApiKey]:
        """Iterate over all keys of a workspace, including disabled and expired ones.

        Paging is by offset: while keys are created or deleted, one may be returned twice or missed.

        Args:
            workspace_id: The workspace; the account's default one if omitted.

        Yields:
            Each key.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        doing = "listing the keys"
        params: dict[str, str | int] = {"include_disabled": "true", "include_expired": "true"}
        if workspace_id is not None:
            params["workspace_id"] = workspace_id
        offset = 0
        for _ in range(MAX_PAGES):
            answer = await self._manage("GET", "keys", doing, params={**params, "offset": offset})
            keys = answer.get("data")
            if not isinstance(keys, list):
                raise UnexpectedAnswerError(f"OpenRouter's answer lacks the list data while {doing}.")
            for key in keys:
                yield parse(ApiKey, key, doing)
            # A short page may not be the last one: neither the total nor the page size is documented.
            if not keys:
                return
            offset += len(keys)
        raise UnexpectedAnswerError(f"OpenRouter's list of keys did not end after {MAX_PAGES} pages.")

    async def update_key(self, key_hash: str, **changes: Any) -> ApiKey:
        """Change a key's settings; the call is repeated if its outcome is unknown, because it is idempotent.

        Args:
            key_hash: The key's hash at OpenRouter.
            **changes: The fields to change, such as `disabled` or `limit`; at least one.

        Returns:
            The key after the change.

        Raises:
            ValueError: No change was given.
            NotFoundError: The key does not exist in this account.
            ServiceError: The call failed.
        """
        if not changes:
            raise ValueError("update_key needs at least one change.")
        doing = "changing a key"
        answer = await self._manage("PATCH", _path(key_hash), doing, json_body=changes)
        return parse(ApiKey, answer.get("data"), doing)

    async def delete_key(self, key_hash: str) -> bool:
        """Delete a key permanently.

        Args:
            key_hash: The key's hash at OpenRouter.

        Returns:
            Whether this call deleted it; `False` if the key does not exist (any longer) in this account.

        Raises:
            ServiceError: The call failed, or OpenRouter did not confirm the deletion.
        """
        doing = "deleting a key"
        try:
            answer = await self._manage("DELETE", _path(key_hash), doing)
        except NotFoundError:
            return False
        if answer.get("deleted") is not True:
            raise UnexpectedAnswerError(f"OpenRouter did not confirm it while {doing}.", retryable=True)
        return True

    async def assign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Assign a guardrail to a key, replacing its former one; the call is repeated if its outcome is unknown.

        Args:
            guardrail_id: The guardrail.
            key_hash: The key's hash at OpenRouter.

        Raises:
            NotFoundError: The guardrail does not exist in this account.
            UnexpectedAnswerError: The guardrail is not assigned after the call.
            ServiceError: The call failed.
        """
        doing = "assigning a guardrail"
        answer = await self._change_assignment(guardrail_id, key_hash, "", doing)
        # It is undocumented whether a key that already has the guardrail counts as assigned.
        if parse(Assigned, answer, doing).assigned_count == 1 or await self.guardrail_of(key_hash) == guardrail_id:
            return
        raise UnexpectedAnswerError(
            f"OpenRouter did not put the key under the guardrail {redacted(guardrail_id)}: it may not have that key."
        )

    async def unassign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Unassign a guardrail from a key; a key without it is not changed.

        Args:
            guardrail_id: The guardrail.
            key_hash: The key's hash at OpenRouter.

        Raises:
            NotFoundError: The guardrail does not exist in this account.
            ServiceError: The call failed.
        """
        doing = "unassigning a guardrail"
        parse(Unassigned, await self._change_assignment(guardrail_id, key_hash, "/remove", doing), doing)

    async def guardrail_of(self, key_hash: str) -> str | None:
        """Return the guardrail of a key; a key has at most one.

        Args:
            key_hash: The key's hash at OpenRouter.

        Returns:
            The guardrail's id; `None` if there is none. It may be missed while other assignments are changed.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        assignments = self._walk(Assignment, "guardrails/assignments/keys", "listing the guardrails' keys")
        async for assignment in assignments:
            if assignment.key_hash == key_hash:
                return assignment.guardrail_id
        return None

    async def list_workspaces(self) -> AsyncIterator[str]:
        """Iterate over the workspaces of the account.

        Yields:
            Each workspace's id.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        async for workspace in self._walk(Workspace, "workspaces", "listing the workspaces"):
            yield workspace.id

    async def has_workspace(self, workspace_id: str) -> bool:
        """Return whether a workspace belongs to the account.

        Args:
            workspace_id: The workspace.

        Returns:
            Whether the account has the workspace.

        Raises:
            ServiceError: The call failed.
        """
        doing = "reading a workspace"
        try:
            answer = await self._manage("GET", f"workspaces/{_segment(workspace_id, 'workspace')}", doing)
        except NotFoundError:
            return False
        parse(Workspace, answer.get("data"), doing)
        return True

    async def current_key(self, secret: SecretStr) -> CurrentKey:
        """Read a key's own view with that key, which shows that OpenRouter accepts it.

        Args:
            secret: The key's plaintext.

        Returns:
            The key's own view.

        Raises:
            UnauthorizedError: OpenRouter does not accept the key (yet, or any longer).
            ServiceError: The call failed.
        """
        doing = "using a key"
        answer = await self._http.request("GET", "key", doing=doing, headers=_bearer(secret))
        return parse(CurrentKey, answer.get("data"), doing)

    async def about_itself(self) -> CurrentKey:
        """Return the management key's own view, which shows its expiry.

        Raises:
            UnauthorizedError: OpenRouter does not accept the management key.
            ServiceError: The call failed.
        """
        return await self.current_key(self._management_key)

    async def login_ends(self) -> datetime | None:
        """Return when the management key expires (UTC); `None` for never, or if OpenRouter does not say."""
        return (await self.about_itself()).expires_at

    async def accepts(self, secret: SecretStr) -> bool:
        """Return whether a key is valid, even if its budget is exhausted.

        Args:
            secret: The key's plaintext.

        Returns:
            `False` for a 401; `True` also for a key over its limit (402, sometimes 403).

        Raises:
            ServiceError: The call failed without showing whether the key is valid.
        """
        try:
            await self.current_key(secret)
        except UnauthorizedError:
            return False
        except ForbiddenError:
            return True
        except RejectedError as error:
            if error.status != PAYMENT_REQUIRED:
                raise
        return True

    async def check(self) -> str:
        """Check that the management key may manage keys.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """
        try:
            answer = await self._manage("GET", "keys", "listing the keys")
        except (UnauthorizedError, ForbiddenError):
            raise await self._refusal() from None
        if not isinstance(answer.get("data"), list):
            raise UnexpectedAnswerError("OpenRouter's answer lacks the list data while listing the keys.")
        return f"OpenRouter at {self._http.host} accepts the management key."

    async def _refusal(self) -> KeyRotationError:
        where = f"OpenRouter at {self._http.host}"
        try:
            key = await self.about_itself()
        except UnauthorizedError:
            return UnauthorizedError(f"{where} does not accept the management key: it is wrong, disabled or deleted.")
        if key.manages_keys:
            return ForbiddenError(f"{where} accepts the management key but does not let it list keys.")
        return ForbiddenError(f"{where} says that this is a normal API key; a management key is needed here.")

    async def _change_assignment(self, guardrail_id: str, key_hash: str, change: str, doing: str) -> dict[str, Any]:
        path = f"guardrails/{_segment(guardrail_id, 'guardrail')}/assignments/keys{change}"
        try:
            return await self._manage("POST", path, doing, json_body={"key_hashes": [key_hash]})
        except NotFoundError:
            raise self._no_guardrail(guardrail_id) from None

    def _no_guardrail(self, guardrail_id: str) -> NotFoundError:
        where = f"OpenRouter at {self._http.host}"
        return NotFoundError(f"{where} has no guardrail {redacted(guardrail_id)} in this account.", status=404)

    async def _walk(self, model: type[M], path: str, doing: str) -> AsyncIterator[M]:
        """Iterate over a list that states its total count, which the list of keys does not."""
        offset = 0
        for _ in range(MAX_PAGES):
            answer = await self._manage("GET", path, doing, params={"offset": offset, "limit": PAGE_SIZE})
            page = parse(Page, answer, doing)
            for record in page.data:
                yield parse(model, record, doing)
            offset += len(page.data)
            if not page.data or offset >= page.total_count:
                return
        raise UnexpectedAnswerError(f"OpenRouter's list did not end after {MAX_PAGES} pages while {doing}.")

    async def _manage(self, method: str, path: str, doing: str, **how: Any) -> dict[str, Any]:
        return await self._http.request(method, path, doing=doing, headers=_bearer(self._management_key), **how)


def _bearer(secret: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret.get_secret_value()}"}


def _path(key_hash: str) -> str:
    return f"keys/{_segment(key_hash, 'key')}"


def _segment(value: str, name: str) -> str:
    # Percent-encoding does not encode dots, and servers tend to decode slashes before they route the path.
    if value in {"", ".", ".."} or not value.isprintable() or set("/\\") & set(value):
        raise ConfigurationError(f"The id of the {name} is not one that OpenRouter gives out.")
    return quote(value, safe="")
