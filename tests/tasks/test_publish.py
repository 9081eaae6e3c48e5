"""A write that a store refuses temporarily is repeated a little later in the same run."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.server import Fault
from tests.tasks.conftest import FakeWorld


@pytest.mark.parametrize("asked", [0, 7])
async def test_a_write_that_is_refused_is_made_again_when_the_store_asks_for_it(world: FakeWorld, asked: int) -> None:
    """The repetition comes no sooner than the store asks."""
    refused = Fault("before", "POST", "/data/", status=503, headers={"Retry-After": str(asked)}, times=1)
    world.vault_app.state.faults.add(refused)
    began = world.time

    await world.rotate()

    assert refused.struck == 1
    assert world.ledger.pending is None
    assert world.time - began >= timedelta(seconds=asked)


async def test_a_store_that_is_busy_for_seconds_does_not_end_the_run(world: FakeWorld) -> None:
    """A locked database answers 503 until another client has finished its write."""
    refused = Fault("before", "POST", "/data/", status=503, times=4)
    world.vault_app.state.faults.add(refused)
    began = world.time

    await world.rotate()

    assert refused.struck == 4
    assert world.time - began > timedelta(seconds=4)


async def test_a_store_that_stays_away_is_not_waited_for_after_the_last_attempt(world: FakeWorld) -> None:
    """The slot is needed by others, such as an emergency."""
    refused = Fault("before", "POST", "/data/", status=503)
    world.vault_app.state.faults.add(refused)
    began = world.time

    await world.failure(world.rotate())

    assert refused.struck == 5
    assert world.time - began < timedelta(seconds=10)
