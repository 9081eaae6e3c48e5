"""All ledgers at one moment, those that cannot be read among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blocks.errors import LedgerError
from tasks.model.ledger import Ledger, parse_ledger


class LedgerSet:
    """All ledgers at one moment.

    Args:
        values: The value of each ledger's variable, by the rotation's name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.ledgers: dict[str, Ledger] = {}
        self.damaged: dict[str, str] = {}
        for name, value in values.items():
            try:
                self.ledgers[name] = parse_ledger(name, value)
            except LedgerError as error:
                self.damaged[name] = str(error)

    def hashes(self) -> set[str]:
        """Collect the hashes of all keys that the ledgers explain."""
        return {key_hash for ledger in self.ledgers.values() for key_hash in ledger.hashes()}
