"""A scheduled run soon after another rotation does not rotate again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.tasks.conftest import Life


async def young(life: Life) -> str:
    """A rotation that a person has just run; the hash of its key."""
    life.change(minimum_age=timedelta(days=7))
    await life.rotate()
    life.later(days=1)
    return (await life.held()).hash


async def test_a_scheduled_run_leaves_a_young_key_alone_and_says_why(life: Life) -> None:
    """No key is made, and the message tells the reason."""
    held = await young(life)

    message = await life.rotate(scheduled_for=life.time)

    assert (await life.held()).hash == held
    assert message.startswith("Nothing to do: the key")
    assert "younger than its minimum age" in message


@pytest.mark.parametrize("emergency", [False, True], ids=["a person", "an emergency"])
async def test_a_persons_run_always_rotates(life: Life, emergency: bool) -> None:
    """Whoever presses Run gets a new key."""
    held = await young(life)

    await life.rotate(emergency=emergency)

    assert (await life.held()).hash != held


async def test_an_old_enough_key_is_rotated_by_schedule(life: Life) -> None:
    """After its minimum age the schedule counts again."""
    held = await young(life)
    life.later(days=6)

    await life.rotate(scheduled_for=life.time)

    assert (await life.held()).hash != held


async def test_a_young_key_that_is_dead_is_replaced(life: Life) -> None:
    """A key that somebody has deleted by hand is no reason to do nothing."""
    await young(life)
    life.openrouter.delete_key(await life.held())

    await life.rotate(scheduled_for=life.time)

    assert life.use(await life.held()) == 200


async def test_a_destination_that_does_not_hold_the_young_key_gets_a_new_one(life: Life) -> None:
    """A destination changed by hand is put right by the schedule, too."""
    await young(life)
    await life.block.awrite_secret(b"something else")

    await life.rotate(scheduled_for=life.time)

    assert life.use(await life.held()) == 200


async def test_what_is_due_is_revoked_all_the_same(life: Life) -> None:
    """A run that makes no key still ends the overlap of older ones."""
    life.change(minimum_age=timedelta(days=7))
    await life.rotate()
    await life.rotate()
    life.later(days=2)

    await life.rotate(scheduled_for=life.time)

    assert life.ledger.superseded == ()


async def test_a_week_of_late_runs_rotates_once(life: Life) -> None:
    """A scheduler or a worker that was down for a week leaves late runs behind; the first of them rotates for all."""
    await life.rotate()
    late = [life.time + timedelta(days=day) for day in range(1, 8)]
    life.later(days=7, hours=1)

    for scheduled_for in late:
        await life.rotate(scheduled_for=scheduled_for)
        life.later(minutes=1)

    assert len(life.openrouter.created) == 2


async def test_the_next_run_in_time_rotates_again(life: Life) -> None:
    """What was late does not make the schedule skip its next turn."""
    await life.rotate()
    life.later(days=1)
    await life.rotate(scheduled_for=life.time - timedelta(hours=3))
    life.later(days=1)

    await life.rotate(scheduled_for=life.time)

    assert len(life.openrouter.created) == 3
