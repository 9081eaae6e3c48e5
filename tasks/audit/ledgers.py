"""A snapshot of all ledgers, including those that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blocks.errors import LedgerError
from tasks.model.ledger import Ledger, parse_ledger
from tasks.world.ports import World


class LedgerSet:
    """A snapshot of all ledgers.

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
        """Return the hashes of all keys in the ledgers."""
        return {key_hash for ledger in self.ledgers.values() for key_hash in ledger.hashes()}


async def connections_in_use(world: World) -> list[str]:
    """Return the connections that rotations use, or have used for keys that are still in a ledger.

    Args:
        world: Access to everything outside of the process.

    Returns:
        The names of the connections, sorted.

    Raises:
        ServiceError: Prefect's API failed.
    """
    ledgers = LedgerSet({name: value async for name, value in world.ledgers()}).ledgers.values()
    deployed = {each.rotation.connection async for each in world.deployments() if each.rotation is not None}
    return sorted({entry.connection for ledger in ledgers for entry in ledger.entries()} | deployed)
