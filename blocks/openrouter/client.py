"""The client of OpenRouter's management API.

Source of every path, field and status: OpenRouter's API reference, "API Keys", "Guardrails" and "Workspaces"
(https://openrouter.ai/docs/api-reference/api-keys/list).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from blocks.errors import (
    ForbiddenError,
    KeyRotationError,
    NotFoundError,
    RejectedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.openrouter import api
from blocks.openrouter.analytics import Analytics
from blocks.openrouter.answers import Assigned, Assignment, Unassigned, parse
from blocks.openrouter.api import bearer, segment
from blocks.openrouter.keys import PAYMENT_REQUIRED, ApiKey, CreatedKey, CurrentKey, KeyRequest, Standing, Workspace
from blocks.openrouter.lists import KeyLists
from blocks.redaction import redacted


class OpenRouterClient(KeyLists, Analytics):
    """OpenRouter's management API over one HTTP connection; see `ManagementApi` for its arguments."""

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

        A key that is created or deleted meanwhile may be missing, or be returned although it is gone.

        Args:
            workspace_id: The workspace; the account's default one if omitted.

        Yields:
            Each key.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        doing = "listing the keys"
        params = {"include_disabled": "true", "include_expired": "true"}
        if workspace_id is not None:
            params["workspace_id"] = workspace_id
        async for key in self._walk(ApiKey, "keys", doing, "hash", **params):
            yield key

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
            raise UnexpectedAnswerError(f"OpenRouter did not confirm the deletion while {doing}.", retryable=True)
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
            f"OpenRouter did not assign the guardrail {redacted(guardrail_id)} to the key: the key may not exist there."
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
            The guardrail's id; `None` if there is none.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        assignments = self._walk(
            Assignment, "guardrails/assignments/keys", "listing the guardrails' keys", "key_hash", limit=api.PAGE_SIZE
        )
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
        async for workspace in self._walk(Workspace, "workspaces", "listing the workspaces", limit=api.PAGE_SIZE):
            yield workspace.id

    async def workspace(self, workspace_id: str) -> Workspace:
        """Read one workspace.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace.

        Raises:
            NotFoundError: The account does not have it, or has no workspaces at all.
            ForbiddenError: The management key may not see it.
            ServiceError: The call failed.
        """
        doing = "reading a workspace"
        answer = await self._manage("GET", f"workspaces/{segment(workspace_id, 'workspace')}", doing)
        return parse(Workspace, answer.get("data"), doing)

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
        answer = await self._http.request("GET", "key", doing=doing, headers=bearer(secret))
        return parse(CurrentKey, answer.get("data"), doing)

    async def about_itself(self) -> CurrentKey:
        """Return the management key's own view, which shows its expiry.

        Raises:
            UnauthorizedError: OpenRouter does not accept the management key.
            ServiceError: The call failed.
        """
        return await self.current_key(self._management_key)

    async def login_ends(self) -> datetime | None:
        """Return when the management key expires (UTC); `None` for never, or if OpenRouter does not tell."""
        return (await self.about_itself()).expires_at

    async def accepts(self, secret: SecretStr) -> Standing:
        """Return whether a key is valid, even if its budget, or its workspace's, is exhausted.

        Args:
            secret: The key's plaintext.

        Returns:
            `REFUSED` for a 401, which is false; `NO_BUDGET` for a key over its limit (402, sometimes 403).

        Raises:
            ServiceError: The call failed without showing whether the key is valid.
        """
        try:
            await self.current_key(secret)
        except UnauthorizedError:
            return Standing.REFUSED
        except ForbiddenError:
            return Standing.NO_BUDGET
        except RejectedError as error:
            if error.status != PAYMENT_REQUIRED:
                raise
            return Standing.NO_BUDGET
        return Standing.VALID

    async def peek(self, path: str) -> bool:
        """Check that the account has a listable part of the API, and that the management key may see it.

        Args:
            path: The path of the list.

        Returns:
            `True`; a missing part raises.

        Raises:
            NotFoundError: The account lacks the part.
            ForbiddenError: The management key may not see it.
            ServiceError: The call failed.
        """
        doing = "looking what the account has"
        answer = await self._manage("GET", path, doing, params={"limit": 1})
        if not isinstance(answer.get("data"), list | dict):
            raise UnexpectedAnswerError(f"OpenRouter's answer lacks the field data while {doing}.")
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
        path = f"guardrails/{segment(guardrail_id, 'guardrail')}/assignments/keys{change}"
        try:
            return await self._manage("POST", path, doing, json_body={"key_hashes": [key_hash]})
        except NotFoundError:
            raise self._no_guardrail(guardrail_id) from None

    def _no_guardrail(self, guardrail_id: str) -> NotFoundError:
        where = f"OpenRouter at {self._http.host}"
        return NotFoundError(f"{where} has no guardrail {redacted(guardrail_id)} in this account.", status=404)


def _path(key_hash: str) -> str:
    return f"keys/{segment(key_hash, 'key')}"
