"""Prefect's database as it was at a backup, put back after rotations that it does not know."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.tasks.conftest import FakeWorld


class Backup:
    """What Prefect's database holds of a rotation, its flow runs among it."""

    def __init__(self, world: FakeWorld) -> None:
        self._terms, self._runs = deepcopy(world.store.terms), set(world.runs)

    def restore(self, world: FakeWorld) -> None:
        """Put it back; the destination is in another store, and stays as it is."""
        world.store.terms, world.runs = deepcopy(self._terms), set(self._runs)


async def restored(world: FakeWorld, rotations: int = 1) -> None:
    """Rotations have come after the backup that is put back; the next look is more than an hour later."""
    await world.rotate()
    backup = Backup(world)
    for _ in range(rotations):
        world.later(hours=2)
        await world.rotate()
    backup.restore(world)
    world.later(hours=2)


def everything_is_explained(world: FakeWorld) -> bool:
    """Whether the ledger knows exactly the keys that there are."""
    return set(world.openrouter.keys) == world.ledger.hashes()


async def revoked_key_is_back(world: FakeWorld) -> Any:
    """A destination in Prefect's own database holds what it held at the backup: a key that was revoked since."""
    world.change(overlap="PT0S")
    await world.rotate()
    backup, former = Backup(world), await world.held()
    world.later(hours=2)
    await world.rotate()
    newer = await world.held()
    backup.restore(world)
    await world.block.awrite_secret(former.secret.encode())
    world.later(hours=2)
    return newer
