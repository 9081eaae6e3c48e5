"""An in-memory ledger store that replaces Prefect's variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from blocks.errors import OtherRunError
from tasks.model.ledger import FORMAT
from tasks.world.open_ledger import LedgerTerm, is_closed


class Memory:
    """The store of one ledger.

    Args:
        value: The value of the first term; without it, there is no ledger.
    """

    def __init__(self, value: Any = None) -> None:
        self.terms: dict[int, Any] = {}
        self.value = value

    @property
    def value(self) -> Any:
        """The value of the newest term; `None` without a ledger, or with a closed one."""
        newest = deepcopy(self.terms[max(self.terms)]) if self.terms else None
        return None if is_closed(newest) else newest

    @value.setter
    def value(self, value: Any) -> None:
        """Overwrite the newest term, or delete all terms, as a person can do."""
        if value is None:
            self.terms.clear()
        else:
            self.terms[max(self.terms, default=1)] = deepcopy(value)

    async def newest(self) -> list[LedgerTerm]:
        """Read the terms."""
        return [LedgerTerm(number, deepcopy(self.terms[number])) for number in sorted(self.terms, reverse=True)]

    async def create(self, term: LedgerTerm) -> None:
        """Create a term."""
        if term.number in self.terms:
            raise OtherRunError("Another run has just written the ledger.")
        self.terms[term.number] = deepcopy(term.value)

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Mark the ledger of format 1 as superseded by terms."""
        self.terms[0] = {**value, "format": FORMAT}

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms."""
        for number in numbers:
            self.terms.pop(number, None)
