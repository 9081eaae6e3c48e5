"""Restore Prefect's database from a backup that is older than the latest rotations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.tasks.conftest import FakeWorld


class Backup:
    """What Prefect's database stores about a rotation, including its flow runs."""

    def __init__(self, world: FakeWorld) -> None:
        self._terms, self._runs = deepcopy(world.store.terms), set(world.runs)

    def restore(self, world: FakeWorld) -> None:
        """Restore the backup; the destination is in another store, and keeps its content."""
        world.store.terms, world.runs = deepcopy(self._terms), set(self._runs)


async def restored(world: FakeWorld, rotations: int = 1) -> None:
    """Rotate after a backup, restore it, and let more than an hour pass."""
    await world.rotate()
    backup = Backup(world)
    for _ in range(rotations):
        world.later(hours=2)
        await world.rotate()
    backup.restore(world)
    world.later(hours=2)


def everything_is_recorded(world: FakeWorld) -> bool:
    """Return whether the ledger has exactly the existing keys."""
    return set(world.openrouter.keys) == world.ledger.hashes()


async def revoked_key_is_back(world: FakeWorld) -> Any:
    """Restore a destination inside Prefect's database too, so that it holds a key that has been revoked since."""
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
