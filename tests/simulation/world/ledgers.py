"""The terms of a ledger in Prefect's variables, as one run sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from blocks.errors import (
    OtherRunError,
)
from tasks.world.ledgers import LOOKED_AT, term_variable
from tasks.world.open_ledger import LedgerTerm
from tests.simulation.world.process import Process


class ModelStore:
    """The terms of a ledger in Prefect's variables, as one run sees them."""

    def __init__(self, process: Process, rotation: str) -> None:
        self._process = process
        self._model = process.model
        self._rotation = rotation
        self._expected: int | None = None
        self._looked = False
        process.seen_signatures = None

    async def newest(self) -> list[LedgerTerm]:
        """Read the newest terms."""
        return await self._process.effect("read the ledger", self._read)

    def _read(self) -> list[LedgerTerm]:
        terms = self._model.terms(self._rotation)
        newest = terms[0].number if terms else None
        if not self._looked or newest == self._expected:
            self._process.seen_signatures = self._model.signatures
            self._looked, self._expected = True, newest
        return terms[:LOOKED_AT]

    async def create(self, term: LedgerTerm) -> None:
        """Create a term; a request that timed out may still create it, at any later time."""
        await self._process.effect("write the ledger", lambda: self._create(term), late=True)

    def _create(self, term: LedgerTerm) -> None:
        name = term_variable(self._rotation, term.number)
        if name in self._model.variables:
            if self._model.variables[name] == term.value:
                return
            raise OtherRunError("Another run has just written the ledger.")
        self._model.variables[name] = term.value
        if self._model.terms(self._rotation)[0].number == term.number:
            self._model.signatures += 1
            self._process.seen_signatures = self._model.signatures
            self._expected = term.number

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Do nothing: no history begins with a ledger of format 1."""

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms."""
        names = [term_variable(self._rotation, number) for number in numbers]
        await self._process.effect("delete terms of the ledger", lambda: self._delete(names))

    def _delete(self, names: Collection[str]) -> None:
        newest = self._model.terms(self._rotation)[:1]
        for name in names:
            self._model.variables.pop(name, None)
        if self._model.terms(self._rotation)[:1] != newest:
            self._model.signatures += 1
            self._process.seen_signatures = self._model.signatures
            self._expected = None
