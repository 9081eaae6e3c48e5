"""Retry of a run that is no longer the last one."""

from __future__ import annotations

from uuid import uuid4

from sandbox.server import Fault
from tests.tasks.conftest import Life


async def test_a_retried_emergency_ends_what_it_was_to_end(life: Life) -> None:
    """It failed, and a scheduled run has rotated since, with an overlap for the stolen key: Retry ends that key."""
    await life.rotate()
    stolen = (await life.held()).hash
    run_id, first_started = uuid4(), life.time
    life.app.state.faults.add(Fault("before", "POST", "/keys$", status=403))
    await life.failure(life.rotate(run_id=run_id, emergency=True))
    life.app.state.faults.clear()
    life.later(minutes=5)
    await life.rotate()

    await life.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True)

    assert stolen not in life.openrouter.keys
    assert [key.hash for key in life.openrouter.live_keys()] == [(await life.held()).hash]


async def test_a_retry_of_a_finished_run_tells_of_the_one_that_is_not(life: Life) -> None:
    """Its own rotation is done; what another run has begun since is named, and not passed over in silence."""
    first, second = uuid4(), uuid4()
    await life.rotate(run_id=first)
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body={"error": {"code": 418}}))
    await life.failure(life.rotate(run_id=second))
    life.app.state.faults.clear()

    said = await life.rotate(run_id=first, attempt=2)

    assert f"the later rotation by run {second} is unfinished" in said
