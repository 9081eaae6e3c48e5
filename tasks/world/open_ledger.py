"""A rotation's ledger during one run: each write creates the next term, and each effect is preceded by a check."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

from pydantic import ValidationError

from blocks.errors import LedgerError, OtherRunError
from tasks.model.ledger import Ledger, parse_ledger
from tasks.model.room import MAX_LEDGER_BYTES, length, without_left_places

PACKAGE = version("key-rotation")
KEPT_TERMS = 2
"""How many terms are kept, for a person who wants to see what changed."""


class LedgerTerm(NamedTuple):
    """A term of a ledger, as it is stored.

    Args:
        number: Its number; the term with the highest one is the ledger. 0 for a ledger of format 1, which has no terms.
        value: Its JSON value.
    """

    number: int
    value: Any


class OwnTermError(Exception):
    """This attempt has already created a term of this number, but never got the answer."""


class LedgerStore(Protocol):
    """The store of a ledger's terms: Prefect variables, or a model of them in tests."""

    async def newest(self) -> list[LedgerTerm]:
        """Return the newest terms, the newest first."""

    async def create(self, term: LedgerTerm) -> None:
        """Create a term; `OtherRunError` if another run has created it, `OwnTermError` if this attempt has."""

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Mark a ledger of format 1 as continued in terms."""

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms."""


class OpenLedger:
    """A rotation's ledger during one run.

    Creating a term is exclusive, and a term never changes. So of two runs that write concurrently, one loses, and a
    write that takes effect late does no harm: its number is taken, or no longer the newest.

    Args:
        rotation: The rotation's name.
        store: The store of the ledger.
        run_id: The flow run that writes.
    """

    def __init__(self, rotation: str, store: LedgerStore, run_id: UUID) -> None:
        self._rotation = rotation
        self._store = store
        # Two attempts of one flow run are two writers: the earlier one may still be running.
        self._writer = f"{run_id}/{uuid4().hex[:8]}"
        self._term: int | None = None
        self._is_mine = False
        self.loaded = False
        self.ledger = Ledger()

    @property
    def exists(self) -> bool:
        """Whether the rotation has a ledger; the closed one of a removed rotation does not count."""
        return self._term is not None and not self.ledger.is_closed

    async def load(self) -> Ledger:
        """Read the ledger.

        Returns:
            The newest term; an empty ledger if there is none.

        Raises:
            LedgerError: This package cannot read it.
        """
        terms = await self._store.newest()
        self._term = terms[0].number if terms else None
        self._is_mine = False
        self.ledger = parse_ledger(self._rotation, terms[0].value) if terms else Ledger()
        self.loaded = True
        return self.ledger

    async def guard(self) -> None:
        """Check that this attempt's term is still the newest; if it has written none yet, take the ledger over.

        Raises:
            OtherRunError: Another run has taken over.
        """
        if self._term is not None and not self._is_mine:
            await self.save(self.ledger)
            return
        newest = await self._store.newest()
        if (newest[0].number if newest else None) != self._term:
            raise OtherRunError(
                f"Another run of rotation {self._rotation} has taken over, so this one stopped before its next write."
            )

    async def save(self, ledger: Ledger) -> None:
        """Write the ledger as its next term, and check that this term is the newest.

        Args:
            ledger: The ledger that announces the next step.

        Raises:
            OtherRunError: Another run has taken over.
            LedgerError: The ledger would not fit into a Prefect variable.
        """
        await self.record(ledger)
        # The number may have been free only because later terms exist, and this one was pruned meanwhile.
        await self.guard()

    async def record(self, ledger: Ledger) -> None:
        """Write the ledger as its next term.

        Args:
            ledger: The ledger after a completed step; the next effect is preceded by a check of its own.

        Raises:
            OtherRunError: Another run has taken over.
            LedgerError: The ledger would not fit into a Prefect variable.
        """
        signed, value = self._signed(ledger)
        number = (self._term or 0) + 1
        if self._term == 0:
            await self._store.close_format_1(self.ledger.to_json())
        while True:
            try:
                await self._store.create(LedgerTerm(number, value))
            except OwnTermError:
                number += 1
            else:
                break
        self._term, self._is_mine, self.ledger = number, True, signed

    async def is_recorded(self, key_hash: str) -> bool:
        """Return whether the newest term contains a key; compared as text, so that an unreadable ledger counts, too."""
        return any(key_hash in json.dumps(term.value) for term in (await self._store.newest())[:1])

    def _signed(self, ledger: Ledger) -> tuple[Ledger, dict[str, Any]]:
        """Return a ledger as signed for this write, and its value; refuse one too large for a Prefect variable."""
        signed = ledger.written(self._writer, PACKAGE)
        value = signed.to_json()
        if length(value) > MAX_LEDGER_BYTES:
            signed = without_left_places(signed)
            value = signed.to_json()
            if length(value) > MAX_LEDGER_BYTES:
                raise LedgerError(
                    f"The ledger of rotation {self._rotation} has no room for another key: it already holds "
                    f"{len(ledger.superseded)} superseded ones. Shorten the overlap, rotate less often, or run retire."
                )
        return signed, value


async def prune(store: LedgerStore, terms: Sequence[LedgerTerm]) -> None:
    """Delete the terms of a ledger, except for its newest two, or the last one of a removed rotation.

    Args:
        store: The store of the ledger.
        terms: Its terms, the newest first.

    Raises:
        ServiceError: Prefect's API failed.
    """
    kept = 1 if is_closed(terms[0].value) else KEPT_TERMS
    # A paginated list may contain a term twice.
    older = list(dict.fromkeys(term.number for term in terms))[kept:]
    if 0 in older:
        # Empty the ledger of format 1: if all terms were deleted by hand, its content must not count again.
        await store.close_format_1(Ledger().closed().to_json())
        older.remove(0)
    await store.delete(older)


def is_closed(value: Any) -> bool:
    """Return whether a term is the last one of a removed rotation; `False` if it cannot be read."""
    # Parse only removed ones: a listing contains the ledgers of all rotations.
    if not isinstance(value, Mapping) or not value.get("removed"):
        return False
    try:
        return Ledger.model_validate(value).is_closed
    except ValidationError:
        return False
