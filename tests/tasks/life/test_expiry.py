"""The expiry of a key counts from its creation, whatever is done with the key afterwards."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.server import Fault
from tasks.life.remove import plan_removal
from tests.tasks.conftest import FakeWorld

DISABLE = {"revoke": "disable-then-delete"}


@pytest.mark.parametrize("hours", [12, 36], ids=["expires soon", "has expired"])
async def test_a_key_that_expires_before_the_next_rotation_is_not_restored(world: FakeWorld, hours: int) -> None:
    """Restored, it would leave every consumer without a key until then; the current one is good."""
    world.interval = timedelta(days=7)
    world.change(key={"expires_after": timedelta(days=9)}, retirement=DISABLE)
    await world.rotate()
    world.later(days=7)
    await world.rotate()
    world.later(days=1)
    await world.retire()
    world.later(hours=hours)
    before = world.everything()

    sentence = await world.failure(world.restore())

    assert "start a rotation instead" in sentence
    assert sentence.endswith("Nothing was changed.")
    assert world.everything() == before


async def test_without_a_deployment_a_key_that_expires_later_is_restored(world: FakeWorld) -> None:
    """No rotation will replace it, so there is none to outlive."""
    world.change(key={"expires_after": timedelta(days=9)})
    await world.rotate()
    await world.rotate()
    world.is_deployed = False

    message = await world.restore()

    assert message.startswith("Restored")
    assert "rotate before that." in message


async def test_a_restored_key_is_replaced_before_it_expires(world: FakeWorld) -> None:
    """Its own expiry counts, not that of the key that it replaces, although a scheduled run finds it too young."""
    world.interval = timedelta(days=1)
    world.change(key={"expires_after": timedelta(days=8)}, minimum_age=timedelta(days=5))
    await world.rotate()
    world.later(days=4)
    await world.rotate()
    await world.restore()
    world.later(days=2)

    await world.rotate(scheduled_for=world.time)

    world.later(days=3)
    assert world.use(await world.held()) == 200


@pytest.mark.parametrize("keep_for", [None, timedelta(days=30)], ids=["keep", "keep-until"])
async def test_a_kept_key_that_expires_says_so(world: FakeWorld, keep_for: timedelta | None) -> None:
    """OpenRouter cannot take an expiry away, and nobody replaces the key any more: plan and message tell."""
    world.change(key={"expires_after": timedelta(days=10)})
    await world.rotate()
    end = f"expires at {world.time + timedelta(days=10):%Y-%m-%d %H:%M} UTC"
    until = None if keep_for is None else world.time + keep_for

    planned = plan_removal(world.ledger, "checkout", until, empty=False)
    message = await world.remove(until)

    assert any(end in step for step in planned)
    assert end in message


async def test_a_retry_of_a_removal_says_that_the_kept_key_expires(world: FakeWorld) -> None:
    """The attempt that kept the key has failed later, so only the Retry tells."""
    world.change(key={"expires_after": timedelta(days=10)}, overlap=timedelta(0))
    await world.rotate()
    world.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=500))
    await world.failure(world.rotate())
    await world.failure(world.remove(None))
    world.app.state.faults.clear()

    message = await world.remove(None, attempt=2)

    assert "expires at" in message


async def test_a_key_that_ends_before_it_expires_is_removed_without_a_word(world: FakeWorld) -> None:
    """An expiry after the key's end says nothing."""
    world.change(key={"expires_after": timedelta(days=10)})
    await world.rotate()

    message = await world.remove(world.time + timedelta(days=9))

    assert "expires at" not in message
