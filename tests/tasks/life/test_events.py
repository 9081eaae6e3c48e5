"""What a rotation tells of, in which order."""

from __future__ import annotations

from uuid import uuid4

from tasks.model.events import Event
from tests.tasks.conftest import Life


async def test_a_rotation_tells_each_step(life: Life) -> None:
    """From the key's creation to the moment when every destination holds it."""
    await life.rotate()

    assert [event for event, _ in life.events] == [
        Event.KEY_CREATED,
        Event.KEY_VERIFIED,
        Event.KEY_PUBLISHED,
        Event.ROTATION_COMPLETED,
    ]


async def test_a_retry_tells_again_that_the_rotation_is_completed(life: Life) -> None:
    """The process may have died before it told anybody, and then consumers would not have been restarted."""
    run_id = uuid4()
    await life.rotate(run_id=run_id)
    life.events.clear()

    await life.rotate(run_id=run_id)

    assert [event for event, _ in life.events] == [Event.ROTATION_COMPLETED]
    assert life.events[0][1]["key_hash"] == (await life.held()).hash


async def test_a_scheduled_run_that_leaves_a_young_key_alone_tells_nothing(life: Life) -> None:
    """Nothing has changed, so no consumer is restarted."""
    life.change(minimum_age="P7D")
    await life.rotate()
    life.events.clear()

    await life.rotate(scheduled_for=life.time)

    assert life.events == []
