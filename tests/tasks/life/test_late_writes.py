"""A write of unknown outcome into a store that compares nothing before it sets, and that takes effect later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from unittest import mock

import pytest

from blocks.errors import ConfigurationError, ServiceError
from flows.rotate import follow_protocol
from tasks.model.keys import NOT_YET_ROTATED
from tasks.steps import PLAIN
from tasks.world.run import Run, VerifiedKey
from tests.tasks.conftest import FakeWorld

LATE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _late_writes(world: FakeWorld) -> Iterator[None]:
    """A write to the destination may take effect up to a minute late."""
    with mock.patch.object(type(world.block), "late_writes", LATE):
        yield


async def left_open(world: FakeWorld, *, published: bool) -> str:
    """Interrupt a run once the write of its key has begun, and return that key, which is published or not yet."""
    seen: list[str] = []

    async def publish(run: Run, key: VerifiedKey, name: str) -> None:
        seen.append(key.secret.get_secret_value())
        if published:
            await PLAIN.publish(run, key, name)
        raise ConfigurationError("The process is killed.")

    await world.failure(follow_protocol(world.open(), world.rotation, PLAIN._replace(publish=publish)))
    return seen[0]


@pytest.mark.parametrize("rotated_since", [False, True], ids=["", "and the rotation has run again"])
async def test_a_dead_key_that_is_written_after_an_emergency_is_noticed_once_no_write_can_come(
    world: FakeWorld, rotated_since: bool
) -> None:
    """Given an emergency that gave the key of an open write up, the destinations are read again when that has ended."""
    await world.rotate()
    late = await left_open(world, published=False)
    until = world.time + LATE
    await world.rotate(emergency=True)
    if rotated_since:
        await world.rotate()
    await world.block.awrite_secret(late.encode())
    world.time = min(at for at in world.retirements if at >= until)

    sentence = await world.failure(world.retire())

    assert not world.openrouter.is_live(late)
    assert "is not in vault-secret/checkout: it was overwritten there" in sentence
    assert "Start a new run" in sentence


async def test_a_write_that_never_came_costs_one_look(world: FakeWorld) -> None:
    """Given that the destination holds the current key when the write cannot come any more, nobody looks again."""
    await world.rotate()
    await left_open(world, published=False)
    await world.rotate(emergency=True)
    [world.time] = world.retirements

    await world.retire()

    assert world.ledger.due_times() == []
    assert len(world.retirements) == 1


async def test_a_placeholder_that_is_written_after_the_rotation_was_added_again_is_noticed(world: FakeWorld) -> None:
    """Given a removal that failed without an answer to its write, the next rotation's destinations are read again."""
    await world.rotate()
    unanswered = ServiceError("not answered", outcome_unknown=True, retryable=True)
    with mock.patch.object(type(world.block), "write_content", side_effect=unanswered):
        await world.failure(world.remove(world.time, empty=True))
    until = world.time + LATE
    world.is_deployed = True
    await world.rotate()
    await world.block.awrite_secret(NOT_YET_ROTATED.encode())
    world.time = min(at for at in world.retirements if at >= until)

    sentence = await world.failure(world.retire())

    assert "is not in vault-secret/checkout: it was overwritten there" in sentence


@pytest.mark.parametrize("came", [True, False], ids=["the write came", "it did not come"])
async def test_a_key_that_a_late_write_may_bring_back_is_capped_only_after_that(world: FakeWorld, came: bool) -> None:
    """Given a carried budget, the former key keeps its limit while the destination may get it, and while it has it."""
    world.change(key={"carry_budget": True})
    former = await left_open(world, published=True)
    await world.rotate()
    world.spend(await world.held(), "30")
    await world.rotate()
    key = world.openrouter.by_secret[former]
    before = world.openrouter.remaining(key)
    if came:
        await world.block.awrite_secret(former.encode())
    world.time = min(world.retirements)

    await (world.failure(world.retire()) if came else world.retire())

    assert [before, world.openrouter.remaining(key)] == [Decimal(20), Decimal(20 if came else 0)]


async def test_a_late_write_keeps_only_its_own_key_alive(world: FakeWorld) -> None:
    """Given rotations that follow each other within that minute, the keys of the others end with their overlap."""
    world.change(overlap=timedelta(0))
    late = await left_open(world, published=True)
    for _ in range(10):
        await world.rotate()

    [kept] = world.ledger.superseded
    assert world.openrouter.by_secret[late].hash == kept.hash
    assert len(world.openrouter.live_keys()) == 2


async def test_a_removed_rotation_is_not_looked_at_again(world: FakeWorld) -> None:
    """Given a write of unknown outcome, nobody comes for the destinations once the rotation is removed."""
    world.change(overlap=timedelta(0))
    await left_open(world, published=True)
    await world.rotate()

    await world.remove(world.time)

    assert world.retirements == []
