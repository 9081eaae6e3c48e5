"""A scheduled run soon after another rotation makes no further key."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.tasks.conftest import FakeWorld


async def young(world: FakeWorld) -> str:
    """Rotate as a person would, and return the hash of the new key."""
    world.change(minimum_age=timedelta(days=7))
    await world.rotate()
    world.later(days=1)
    return (await world.held()).hash


async def test_a_scheduled_run_leaves_a_young_key_alone_and_says_why(world: FakeWorld) -> None:
    """No key is created, and the message gives the reason."""
    held = await young(world)

    message = await world.rotate(scheduled_for=world.time)

    assert (await world.held()).hash == held
    assert message.startswith("Nothing to do: the key")
    assert "younger than its minimum age" in message


@pytest.mark.parametrize("emergency", [False, True], ids=["a person", "an emergency"])
async def test_a_persons_run_always_rotates(world: FakeWorld, emergency: bool) -> None:
    """Whoever starts a run by hand expects a new key."""
    held = await young(world)

    await world.rotate(emergency=emergency)

    assert (await world.held()).hash != held


async def test_an_old_enough_key_is_rotated_by_schedule(world: FakeWorld) -> None:
    """Once the key has reached its minimum age, the schedule applies again."""
    held = await young(world)
    world.later(days=6)

    await world.rotate(scheduled_for=world.time)

    assert (await world.held()).hash != held


async def test_a_young_key_that_is_dead_is_replaced(world: FakeWorld) -> None:
    """A young key that a person has deleted by hand leaves consumers without a key."""
    await young(world)
    world.openrouter.delete_key(await world.held())

    await world.rotate(scheduled_for=world.time)

    assert world.use(await world.held()) == 200


async def test_a_destination_that_does_not_hold_the_young_key_gets_a_new_one(world: FakeWorld) -> None:
    """A destination that was changed by hand is repaired by the schedule, too."""
    await young(world)
    await world.block.awrite_secret(b"something else")

    await world.rotate(scheduled_for=world.time)

    assert world.use(await world.held()) == 200


async def test_what_is_due_is_revoked_all_the_same(world: FakeWorld) -> None:
    """A run that creates no key still revokes those whose overlap has ended."""
    world.change(minimum_age=timedelta(days=7))
    await world.rotate()
    await world.rotate()
    world.later(days=2)

    await world.rotate(scheduled_for=world.time)

    assert world.ledger.superseded == ()


async def test_a_young_key_that_would_expire_before_the_next_run_is_replaced(world: FakeWorld) -> None:
    """The expiry counts from the creation: a key made under former settings may not live until it is old enough."""
    world.interval = timedelta(days=7)
    world.change(key={"expires_after": timedelta(days=10)})
    await world.rotate()
    world.change(key={"expires_after": timedelta(days=20)}, minimum_age=timedelta(days=8))
    world.later(days=7)

    await world.rotate(scheduled_for=world.time)

    world.later(days=7)
    assert world.use(await world.held()) == 200
    assert any("would expire before the next run" in note for note in world.notes)


async def test_late_runs_leave_a_key_alone_that_lives_no_longer_than_it_must(world: FakeWorld) -> None:
    """The first of them has rotated for all, also where a key's life is as short as the settings permit."""
    world.interval = timedelta(days=7)
    world.change(key={"expires_after": timedelta(days=9)})
    await world.rotate()
    late = world.time - timedelta(minutes=1)
    world.later(minutes=5)

    await world.rotate(scheduled_for=late)

    assert len(world.openrouter.created) == 1


async def test_a_week_of_late_runs_rotates_once(world: FakeWorld) -> None:
    """After a week without scheduler or worker many late runs start; the first one rotates on behalf of all."""
    await world.rotate()
    late = [world.time + timedelta(days=day) for day in range(1, 8)]
    world.later(days=7, hours=1)

    for scheduled_for in late:
        await world.rotate(scheduled_for=scheduled_for)
        world.later(minutes=1)

    assert len(world.openrouter.created) == 2


async def test_the_next_run_in_time_rotates_again(world: FakeWorld) -> None:
    """A late rotation must not let the schedule skip the next regular one."""
    await world.rotate()
    world.later(days=1)
    await world.rotate(scheduled_for=world.time - timedelta(hours=3))
    world.later(days=1)

    await world.rotate(scheduled_for=world.time)

    assert len(world.openrouter.created) == 3
