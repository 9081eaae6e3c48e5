"""A rotation's ledger during one run: read, guarded, written."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID, uuid4

from blocks.errors import LedgerError, PlaceLostError
from tasks.model.ledger import Ledger, parse_ledger
from tasks.model.room import MAX_LEDGER_BYTES, size


class LedgerStore(Protocol):
    """Where a ledger is kept; a Prefect variable, or a model of one in tests."""

    async def read(self) -> Any | None:
        """Read the value, `None` where there is none."""

    async def create(self, value: dict[str, Any]) -> None:
        """Write the first value; `PlaceLostError` where there is one already."""

    async def update(self, value: dict[str, Any]) -> None:
        """Write the next value."""

    async def delete(self) -> None:
        """Delete the value."""


class OpenLedger:
    """A rotation's ledger during one run.

    Variables have no compare-and-set. The rotation's concurrency slot keeps others out; this class notices one that
    came in all the same. Before each write, and wherever `guard` is called, the stored ledger must be the last seen.

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
        self._seen: Any | None = None
        self.exists = False
        self.loaded = False
        self.ledger = Ledger()

    async def load(self) -> Ledger:
        """Read the ledger.

        Returns:
            The stored ledger, or an empty one where `exists` is then `False`.

        Raises:
            LedgerError: It is damaged.
        """
        self._seen = await self._store.read()
        self.exists = self._seen is not None
        self.ledger = parse_ledger(self._rotation, self._seen) if self.exists else Ledger()
        self.loaded = True
        return self.ledger

    async def guard(self) -> None:
        """Make sure that nobody else has written since this run last read or wrote.

        Raises:
            PlaceLostError: Somebody has.
        """
        if await self._store.read() != self._seen:
            raise PlaceLostError(
                f"Another run of rotation {self._rotation} has taken over, so this one stopped before its next write."
            )

    async def save(self, ledger: Ledger) -> None:
        """Write the next state of the ledger.

        Args:
            ledger: The ledger after the step that is about to be done, or has just been done.

        Raises:
            PlaceLostError: Somebody else has written since this run last read or wrote.
            LedgerError: The ledger would not fit into a Prefect variable.
        """
        signed = ledger.written(self._writer)
        self.check_size(signed)
        await self.guard()
        value = signed.to_json()
        await (self._store.update(value) if self.exists else self._store.create(value))
        self._seen, self.exists, self.ledger = value, True, signed

    async def delete(self) -> None:
        """Delete the ledger of a rotation that has no key left.

        Raises:
            PlaceLostError: Somebody else has written since this run last read or wrote.
        """
        await self.guard()
        await self._store.delete()
        self._seen, self.exists = None, False

    def check_size(self, ledger: Ledger) -> None:
        """Refuse a ledger that a Prefect variable cannot hold.

        Args:
            ledger: The ledger as it would be written.

        Raises:
            LedgerError: It is too large.
        """
        if size(ledger) > MAX_LEDGER_BYTES:
            raise LedgerError(
                f"The ledger of rotation {self._rotation} has no room for another key: it already holds "
                f"{len(ledger.superseded)} superseded ones. Shorten the overlap, rotate less often, or run retire."
            )
