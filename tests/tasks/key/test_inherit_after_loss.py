"""What a new key inherits after a ledger was lost, or is out of date because Prefect's database was restored."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.tasks.backup import Backup
from tests.tasks.conftest import FakeWorld

INHERIT = {"inherit": True, "limit_usd": None, "limit_reset": "none"}


async def limited(world: FakeWorld, spent: str) -> None:
    """Rotate, let a person limit the key at OpenRouter, and spend part of that."""
    world.change(key={**INHERIT, "carry_budget": True})
    await world.rotate()
    key = await world.held()
    await world.client.update_key(key.hash, limit=50, limit_reset="monthly")
    world.spend(key, spent)


async def test_the_key_in_use_is_inherited_from_after_the_database_was_restored(world: FakeWorld) -> None:
    """A limit that a person gave it since the backup is not lost with the ledger."""
    world.change(key=INHERIT)
    await world.rotate()
    backup = Backup(world)
    world.later(minutes=5)
    await world.rotate()
    await world.client.update_key((await world.held()).hash, limit=7, limit_reset="daily")
    backup.restore(world)
    world.later(minutes=5)

    await world.rotate()

    held = await world.held()
    assert (held.limit, held.limit_reset) == (Decimal(7), "daily")


async def test_a_key_that_is_current_again_is_inherited_from(world: FakeWorld) -> None:
    """Keys that were found again stay in the ledger for a while, and no longer count once another one is current."""
    world.change(key=INHERIT)
    await world.rotate()
    backup = Backup(world)
    await world.rotate()
    backup.restore(world)
    await world.rotate()
    await world.client.update_key((await world.held()).hash, limit=7, limit_reset="daily")

    await world.rotate()

    held = await world.held()
    assert (held.limit, held.limit_reset) == (Decimal(7), "daily")


@pytest.mark.parametrize("lost", [False, True], ids=["the database was restored", "the ledger was lost"])
async def test_what_is_left_of_a_limit_is_not_taken_for_the_whole(world: FakeWorld, lost: bool) -> None:
    """Consumers would get 402, also after the month has turned; the key that they hold still has what is left."""
    await limited(world, "10")
    backup = Backup(world)
    world.later(minutes=5)
    await world.rotate()
    held = await world.held()
    backup.restore(world)
    if lost:
        world.store.value = None
    world.later(minutes=5)

    sentence = await world.failure(world.rotate())

    assert sentence.startswith("rotation.key.limit_usd: the ledger was")
    assert (await world.held()).hash == held.hash
    assert world.use(held) == 200


@pytest.mark.parametrize("spent", ["10", "50"])
async def test_a_cap_is_not_taken_for_a_limit(world: FakeWorld, spent: str) -> None:
    """The key in use is gone, so that only the capped one is left to inherit from."""
    await limited(world, spent)
    backup = Backup(world)
    world.later(minutes=5)
    await world.rotate()
    gone = await world.held()
    backup.restore(world)
    world.openrouter.delete_key(gone)
    world.later(minutes=5)

    sentence = await world.failure(world.rotate())

    assert sentence.startswith("rotation.key.limit_usd: the ledger was")


async def test_a_cap_of_a_key_whose_whole_limit_is_recorded_stops_nothing(world: FakeWorld) -> None:
    """The ledger knows limit and reset of a key that itself carried a budget."""
    await limited(world, "10")
    await world.rotate()
    world.spend(await world.held(), "5")
    backup = Backup(world)
    await world.rotate()
    gone = await world.held()
    backup.restore(world)
    world.openrouter.delete_key(gone)

    await world.rotate()

    held = await world.held()
    assert (world.use(held), held.limit_reset) == (200, "monthly")


async def test_a_limit_for_life_that_is_spent_is_inherited(world: FakeWorld) -> None:
    """It is what a person wants, and the ledger records it: nothing is in doubt."""
    world.change(key={**INHERIT, "carry_budget": True})
    await world.rotate()
    await world.client.update_key((await world.held()).hash, limit=5)
    await world.rotate()
    world.spend(await world.held(), "5")

    await world.rotate()

    assert (await world.held()).limit == 0


async def test_with_the_limit_named_the_rotation_goes_on(world: FakeWorld) -> None:
    """A person does what the message says, and the budget is carried over from the key in use."""
    await limited(world, "10")
    backup = Backup(world)
    world.later(minutes=5)
    await world.rotate()
    world.spend(await world.held(), "5")
    backup.restore(world)
    world.later(minutes=5)
    await world.failure(world.rotate())
    world.change(key={"limit_usd": 50, "limit_reset": "monthly"})

    await world.rotate()

    held = await world.held()
    assert held.limit is not None
    assert 0 < held.limit <= 45
    assert held.limit_reset == "monthly"


async def test_without_a_limit_nothing_is_in_doubt(world: FakeWorld) -> None:
    """A key without a limit has no budget that could have been carried over."""
    world.change(key={**INHERIT, "carry_budget": True})
    await world.rotate()
    world.store.value = None

    await world.rotate()

    assert (await world.held()).limit is None
