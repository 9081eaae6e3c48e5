"""The events of a rotation, and their order."""

from __future__ import annotations

from uuid import uuid4

from tasks.model.events import Event
from tests.tasks.conftest import FakeWorld


async def test_a_rotation_tells_each_step(world: FakeWorld) -> None:
    """Events report each step from the creation of the key until every destination holds it."""
    await world.rotate()

    assert [event for event, _ in world.events] == [
        Event.KEY_CREATED,
        Event.KEY_VERIFIED,
        Event.KEY_PUBLISHED,
        Event.ROTATION_COMPLETED,
    ]


async def test_a_retry_tells_again_that_the_rotation_is_completed(world: FakeWorld) -> None:
    """The process may have died before it sent the event, and consumers would not be restarted without it."""
    run_id = uuid4()
    await world.rotate(run_id=run_id)
    world.events.clear()

    await world.rotate(run_id=run_id)

    assert [event for event, _ in world.events] == [Event.ROTATION_COMPLETED]
    assert world.events[0][1]["key_hash"] == (await world.held()).hash


async def test_a_scheduled_run_that_leaves_a_young_key_alone_tells_nothing(world: FakeWorld) -> None:
    """Nothing has changed, so no consumer needs a restart."""
    world.change(minimum_age="P7D")
    await world.rotate()
    world.events.clear()

    await world.rotate(scheduled_for=world.time)

    assert world.events == []
