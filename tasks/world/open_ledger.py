"""A rotation's ledger during one run: every write is the next term, and every effect is preceded by a look."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

from pydantic import ValidationError

from blocks.errors import LedgerError, PlaceLostError
from tasks.model.ledger import Ledger, parse_ledger
from tasks.model.room import MAX_LEDGER_BYTES, length, without_left_places

PACKAGE = version("key-rotation")
KEPT_TERMS = 2
"""How many terms stay, for a person who wants to see what changed."""


class Term(NamedTuple):
    """One term of a ledger, as it is stored.

    Args:
        number: Its number; the term with the highest one is the ledger. 0 for a ledger of format 1, which has no terms.
        value: Its JSON value.
    """

    number: int
    value: Any


class OwnTermError(Exception):
    """This attempt has made a term of this number before, and never heard of it."""


class LedgerStore(Protocol):
    """Where the terms of a ledger are kept; Prefect variables, or a model of them in tests."""

    async def newest(self) -> list[Term]:
        """Read the newest terms, the newest first."""

    async def create(self, term: Term) -> None:
        """Make a term; `PlaceLostError` where somebody else has made it, `OwnTermError` where this attempt has."""

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Mark a ledger without terms as one that is continued in terms."""

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms."""


class OpenLedger:
    """A rotation's ledger during one run.

    A term is made once and never changed, and making one is exclusive. So of two runs that write at one moment one
    loses, and a write that takes effect late makes no difference: its number is taken, or no longer the newest.

    Args:
        rotation: The rotation's name.
        store: Where the ledger is kept.
        run_id: The flow run that writes.
    """

    def __init__(self, rotation: str, store: LedgerStore, run_id: UUID) -> None:
        self._rotation = rotation
        self._store = store
        # Two attempts of one flow run are two writers: the first may still be alive.
        self._writer = f"{run_id}/{uuid4().hex[:8]}"
        self._term: int | None = None
        self._is_mine = False
        self.loaded = False
        self.ledger = Ledger()

    @property
    def exists(self) -> bool:
        """Whether there is a ledger of a rotation; the last term of one that was removed does not count."""
        return self._term is not None and not self.ledger.is_closed

    async def load(self) -> Ledger:
        """Read the ledger.

        Returns:
            The newest term; an empty ledger where there is none.

        Raises:
            LedgerError: It cannot be read by this package.
        """
        terms = await self._store.newest()
        self._term = terms[0].number if terms else None
        self._is_mine = False
        self.ledger = parse_ledger(self._rotation, terms[0].value) if terms else Ledger()
        self.loaded = True
        return self.ledger

    async def guard(self) -> None:
        """See that this attempt's term is still the newest; take the ledger over where it has written none yet.

        Raises:
            PlaceLostError: Another run has taken over.
        """
        if self._term is not None and not self._is_mine:
            await self.save(self.ledger)
            return
        newest = await self._store.newest()
        if (newest[0].number if newest else None) != self._term:
            raise PlaceLostError(
                f"Another run of rotation {self._rotation} has taken over, so this one stopped before its next write."
            )

    async def save(self, ledger: Ledger) -> None:
        """Write the ledger as its next term, and see that this term is the newest.

        Args:
            ledger: The ledger after the step that is about to be done.

        Raises:
            PlaceLostError: Another run has taken over.
            LedgerError: The ledger would not fit into a Prefect variable.
        """
        await self.record(ledger)
        # The number may have been free because the terms above it were made, and this one was deleted, meanwhile.
        await self.guard()

    async def record(self, ledger: Ledger) -> None:
        """Write the ledger as its next term.

        Args:
            ledger: The ledger after a step that was done; what follows looks at the ledger itself before its effect.

        Raises:
            PlaceLostError: Another run has taken over.
            LedgerError: The ledger would not fit into a Prefect variable.
        """
        signed, value = self._signed(ledger)
        number = (self._term or 0) + 1
        if self._term == 0:
            await self._store.close_format_1(self.ledger.to_json())
        while True:
            try:
                await self._store.create(Term(number, value))
            except OwnTermError:
                number += 1
            else:
                break
        self._term, self._is_mine, self.ledger = number, True, signed

    async def is_explained(self, key_hash: str) -> bool:
        """Return whether the newest term knows a key; as text, so that even one that cannot be read speaks for it."""
        return any(key_hash in json.dumps(term.value) for term in (await self._store.newest())[:1])

    def _signed(self, ledger: Ledger) -> tuple[Ledger, dict[str, Any]]:
        """Return a ledger as it is written, and its value; refuse what a Prefect variable cannot hold."""
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


async def prune(store: LedgerStore, terms: Sequence[Term]) -> None:
    """Delete the terms of a ledger that are older than its newest two, or than the last one of a removed rotation.

    Args:
        store: Where the ledger is kept.
        terms: Its terms, the newest first.

    Raises:
        ServiceError: Prefect's API failed.
    """
    kept = 1 if is_closed(terms[0].value) else KEPT_TERMS
    # A listing by pages may name a term twice.
    older = list(dict.fromkeys(term.number for term in terms))[kept:]
    if 0 in older:
        # Where all terms are deleted by hand, what it said must not be taken for the ledger again.
        await store.close_format_1(Ledger().closed().to_json())
        older.remove(0)
    await store.delete(older)


def is_closed(value: Any) -> bool:
    """Return whether a term is the last one of a rotation that was removed; `False` where it cannot be read."""
    # A listing has a ledger of every rotation, and only what was removed can be closed.
    if not isinstance(value, Mapping) or not value.get("removed"):
        return False
    try:
        return Ledger.model_validate(value).is_closed
    except ValidationError:
        return False
