"""Lists of an account that name keys, as one connection sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from blocks.errors import ForbiddenError, NotFoundError, RejectedError
from blocks.openrouter.analytics import Use
from blocks.openrouter.lists import KeyList, ListKind
from tests.simulation.world.model import Model
from tests.simulation.world.process import Process

T = TypeVar("T")


@dataclass
class ModelList:
    """A list of an account; `hashes` is `None` if it applies to every key.

    A list is `spoiled` once the rotation was not able to read or change it; from then on, it is not checked.
    """

    id: str
    kind: ListKind
    account: str
    hashes: tuple[str, ...] | None
    spoiled: bool = False

    def shown(self) -> KeyList:
        """Return the list as the management API shows it."""
        return KeyList(self.kind, self.id, self.id, self.hashes)


class ModelLists:
    """The part of a connection that reads and changes lists."""

    _process: Process
    _model: Model
    _account: Callable[[], str]

    async def key_lists(self, kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        """Yield the lists of a kind that name keys; in the model, each applies to every workspace."""

        def found() -> list[KeyList]:
            account = self._account()
            ours = [each for each in self._model.lists.values() if (each.kind, each.account) == (kind, account)]
            return [each.shown() for each in ours if each.hashes is not None]

        for each in await self._seen(f"read the {kind}s", found, *self._model.lists):
            yield each

    async def key_list(self, kind: ListKind, list_id: str) -> KeyList:
        """Read a list."""
        return await self._seen("read a list", lambda: self._one(list_id).shown(), list_id)

    async def replace_keys(self, which: KeyList, hashes: Sequence[str]) -> None:
        """Replace the keys of a list; a concurrent writer with an older copy may undo that right afterwards."""
        await self._seen("replace a list", lambda: self._replace(which.id, hashes), which.id, changes=True)

    async def _seen(self, what: str, do: Callable[[], T], *concerned: str, changes: bool = False) -> T:
        try:
            return await self._process.effect(what, do, changes=changes)
        except ForbiddenError:
            for list_id in concerned:
                self._model.lists[list_id].spoiled = True
            raise

    def _one(self, list_id: str) -> ModelList:
        found = self._model.lists.get(list_id)
        if found is None or found.account != self._account():
            raise NotFoundError("OpenRouter knows no such list.")
        return found

    def _replace(self, list_id: str, hashes: Sequence[str]) -> None:
        which, now = self._one(list_id), self._model.time
        keys = [key for key in self._model.keys.values() if key.account == which.account]
        live = {key.hash for key in keys if key.may_be_listed(now)}
        if not hashes or not set(hashes) <= live:
            # The rotation must not take out a disabled key of somebody else, so it cannot change this list.
            recorded = [ledger.hashes() for name in self._model.rotations() if (ledger := self._model.ledger(name))]
            which.spoiled |= bool(set(hashes) & set(self._model.keys) - live - set().union(*recorded))
            raise RejectedError("OpenRouter knows no such keys.", status=400)
        before, which.hashes = which.hashes, tuple(hashes)
        if self._model.late_writers:
            self._model.late_writers -= 1
            self._model.record("    somebody else writes the list as it was before")
            which.hashes = before

    async def uses_of(self, key_hash: str, since: datetime, until: datetime) -> list[Use]:
        """Fail, as for an account without analytics."""
        raise NotFoundError("OpenRouter has no analytics here.")
