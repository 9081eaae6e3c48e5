"""OpenRouter's key management, as one connection sees it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import SecretStr

from blocks.errors import (
    NotFoundError,
    RejectedError,
    UnauthorizedError,
)
from blocks.openrouter.keys import ApiKey, CreatedKey, CurrentKey, KeyRequest, Standing, Workspace
from tests.simulation.world.keys import ModelKey
from tests.simulation.world.lists import ModelLists
from tests.simulation.world.process import Process


class ModelOpenRouter(ModelLists):
    """OpenRouter's key management, as one connection sees it."""

    def __init__(self, process: Process, connection: str) -> None:
        self._process = process
        self._model = process.model
        self._connection = connection

    def _account(self) -> str:
        account = self._model.connections[self._connection]
        if account in self._model.revoked_accounts:
            raise UnauthorizedError("OpenRouter does not accept the management key.")
        return account

    def _own(self, key_hash: str) -> ModelKey:
        key = self._model.keys.get(key_hash)
        if key is None or key.account != self._account():
            raise NotFoundError("OpenRouter knows no such key.")
        return key

    async def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create a key."""
        created = await self._process.effect(
            "create the key at OpenRouter", lambda: self._create(request), late=True, changes=True
        )
        self._process.made.add(created.key.hash)
        return created

    def _create(self, request: KeyRequest) -> CreatedKey:
        model, account, mark = self._model, self._account(), self._model.fresh()
        if not self._knows(request.workspace_id):
            raise RejectedError("OpenRouter knows no such workspace.")
        key = model.made(
            ModelKey(
                hash=f"hash-{mark}",
                secret=f"sk-or-v1-{mark}",
                request=request.model_copy(update={"name": request.name[: model.longest_name]}),
                account=account,
                workspace=request.workspace_id or f"default-of-{account}",
                created_at=model.time,
                valid_from=model.time + model.validity_lag,
                tells_last_use=model.tells_last_use,
            )
        )
        return CreatedKey(SecretStr(key.secret), key.shown(model.time))

    async def get_key(self, key_hash: str) -> ApiKey:
        """Read a key."""
        return await self._process.effect(
            "read the key at OpenRouter", lambda: self._own(key_hash).shown(self._model.time)
        )

    async def update_key(self, key_hash: str, **changes: Any) -> ApiKey:
        """Change a key."""
        return await self._process.effect(
            "change a key at OpenRouter", lambda: self._update(key_hash, changes), changes=True
        )

    def _update(self, key_hash: str, changes: dict[str, Any]) -> ApiKey:
        key = self._own(key_hash)
        settings = dict(changes)
        key.disabled = settings.pop("disabled", key.disabled)
        key.request = key.request.model_copy(update=settings)
        return key.shown(self._model.time)

    async def assign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Assign a guardrail to a key."""
        await self._process.effect("assign the guardrail", lambda: self._guard(key_hash, guardrail_id), changes=True)

    async def unassign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Remove a key's guardrail."""
        await self._process.effect("unassign the guardrail", lambda: self._guard(key_hash, None), changes=True)

    def _guard(self, key_hash: str, guardrail_id: str | None) -> None:
        self._own(key_hash).guardrail = guardrail_id

    async def guardrail_of(self, key_hash: str) -> str | None:
        """Return the guardrail of a key."""
        return await self._process.effect("list the guardrails", lambda: self._own(key_hash).guardrail)

    async def list_workspaces(self) -> AsyncIterator[str]:
        """List the workspaces."""
        for workspace in await self._process.effect("list the workspaces at OpenRouter", self._workspaces):
            yield workspace

    def _workspaces(self) -> list[str]:
        account = self._account()
        others = {key.workspace for key in self._model.keys.values() if key.account == account}
        return sorted({f"default-of-{account}", *others})

    async def about_itself(self) -> CurrentKey:
        """Use the management key, and return what is known about it."""
        await self._process.effect("use the management key", self._account)
        return CurrentKey(label="management key")

    async def check(self) -> str:
        """Check that the management key works."""
        return await self._process.effect("try the management key", self._account)

    async def list_keys(self, workspace_id: str | None = None) -> AsyncIterator[ApiKey]:
        """List the keys."""
        for key in await self._process.effect("list the keys at OpenRouter", lambda: self._list(workspace_id)):
            yield key

    def _list(self, workspace_id: str | None) -> list[ApiKey]:
        account = self._account()
        wanted = workspace_id or f"default-of-{account}"
        found = [k for k in self._model.keys.values() if k.account == account and k.workspace == wanted]
        return [key.shown(self._model.time) for key in found]

    async def delete_key(self, key_hash: str) -> bool:
        """Delete a key."""
        # Even after another run has taken over, a process may delete a key that it made and that no ledger contains.
        recorded = key_hash in json.dumps(self._model.ledgers())
        changes = recorded or key_hash not in self._process.made
        try:
            await self._process.effect("delete a key at OpenRouter", lambda: self._delete(key_hash), changes=changes)
        except NotFoundError:
            return False
        return True

    def _delete(self, key_hash: str) -> None:
        del self._model.keys[self._own(key_hash).hash]

    async def workspace(self, workspace_id: str) -> Workspace:
        """Read a workspace."""
        return await self._process.effect("read the workspace at OpenRouter", lambda: self._workspace(workspace_id))

    def _workspace(self, workspace_id: str) -> Workspace:
        if not self._knows(workspace_id):
            raise NotFoundError("OpenRouter knows no such workspace.")
        return Workspace(id=workspace_id)

    def _knows(self, workspace_id: str | None) -> bool:
        own = f"default-of-{self._account()}"
        return workspace_id is None or not workspace_id.startswith("default-of-") or workspace_id == own

    async def accepts(self, secret: SecretStr) -> Standing:
        """Return whether OpenRouter accepts a key."""
        works = await self._process.effect("use the key", lambda: self._model.works(secret.get_secret_value()))
        return Standing.VALID if works else Standing.REFUSED
