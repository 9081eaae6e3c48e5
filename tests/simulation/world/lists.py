"""Lists of an account that name keys, as one connection of the model sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from blocks.errors import NotFoundError
from blocks.openrouter.analytics import Use
from blocks.openrouter.lists import KeyList, ListKind


class ModelLists:
    """An account that has none."""

    async def key_lists(self, kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        """List them."""
        for found in list[KeyList]():
            yield found

    async def key_list(self, kind: ListKind, list_id: str) -> KeyList:
        """Read one."""
        raise NotFoundError("OpenRouter knows no such list.")

    async def replace_keys(self, which: KeyList, hashes: Sequence[str]) -> None:
        """Replace the keys of one."""
        raise NotFoundError("OpenRouter knows no such list.")

    async def uses_of(self, key_hash: str, since: datetime, until: datetime) -> list[Use]:
        """Say who has used a key."""
        raise NotFoundError("OpenRouter has no analytics here.")
