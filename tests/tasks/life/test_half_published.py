"""A key that an interrupted run has published, which the next run finishes or gives up."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest

from blocks.errors import ConfigurationError
from flows.rotate import follow_protocol
from tasks.steps import PLAIN
from tasks.world.run import Run, VerifiedKey
from tests.tasks.conftest import FakeWorld


async def interrupted(world: FakeWorld, *, published: bool = True) -> None:
    """Interrupt a run right after it has published its key, or just before."""

    async def publish(run: Run, key: VerifiedKey, name: str) -> None:
        if published:
            await PLAIN.publish(run, key, name)
        raise ConfigurationError("The process is killed.")

    await world.failure(follow_protocol(world.open(), world.rotation, PLAIN._replace(publish=publish)))


async def lose_the_ledger(world: FakeWorld) -> None:
    """Delete the ledger, so that the limit is known only from the key that consumers hold."""
    world.change(key={"inherit": True, "limit_usd": None, "limit_reset": "none"})
    await world.rotate()
    held = (await world.held()).hash
    await world.client.update_key(held, limit=7)
    world.store.value = None


async def test_a_key_of_another_connection_than_the_rotation_has_now_is_given_up(world: FakeWorld) -> None:
    """Given a connection that was changed since, the rotation continues with a key of the new one."""
    world.connections.add("other")
    await world.rotate()
    await interrupted(world)
    given_up = await world.held()
    world.change(connection="other")

    await world.rotate()
    current = world.ledger.current

    assert current is not None
    assert current.connection == "other"
    assert current.hash == (await world.held()).hash != given_up.hash


@pytest.mark.parametrize("published", [True, False], ids=["published", "perhaps still to be published"])
async def test_a_key_that_is_given_up_after_the_ledger_was_lost_leaves_its_settings_known(
    world: FakeWorld, published: bool
) -> None:
    """Given a store with late writes, the next run, or an emergency, still inherits the limit from the key given up."""
    await lose_the_ledger(world)
    with mock.patch.object(type(world.block), "late_writes", timedelta(minutes=1)):
        await interrupted(world, published=published)

        await world.rotate(emergency=published)

    assert (await world.held()).limit == 7
