"""A ledger's place in memory, as Prefect's variables are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from blocks.errors import PlaceLostError
from tasks.model.ledger import FORMAT
from tasks.world.open_ledger import Term, is_closed


class Memory:
    """The terms of one ledger.

    Args:
        value: What the first term says, if there is one.
    """

    def __init__(self, value: Any = None) -> None:
        self.terms: dict[int, Any] = {}
        self.value = value

    @property
    def value(self) -> Any:
        """What the newest term says; `None` where there is no ledger, or the last term of a removed rotation."""
        newest = deepcopy(self.terms[max(self.terms)]) if self.terms else None
        return None if is_closed(newest) else newest

    @value.setter
    def value(self, value: Any) -> None:
        """Do what a person may do: overwrite the newest term, or delete all."""
        if value is None:
            self.terms.clear()
        else:
            self.terms[max(self.terms, default=1)] = deepcopy(value)

    async def newest(self) -> list[Term]:
        """Read the terms."""
        return [Term(number, deepcopy(self.terms[number])) for number in sorted(self.terms, reverse=True)]

    async def create(self, term: Term) -> None:
        """Make a term."""
        if term.number in self.terms:
            raise PlaceLostError("Another run has just written the ledger.")
        self.terms[term.number] = deepcopy(term.value)

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Mark a ledger without terms."""
        self.terms[0] = {**value, "format": FORMAT}

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms."""
        for number in numbers:
            self.terms.pop(number, None)
