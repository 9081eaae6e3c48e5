"""A run and Prefect's own API: it schedules the retirement, loses its slot, or is cancelled by a person."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from prefect import get_client

from flows import rotate
from sandbox.server import Fault
from tests.by_hand import ledger_of
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import attempt, begin_rotation, ended, retirements_of
from tests.e2e.processes import (
    HELD_SECONDS,
    Effect,
    When,
    check_converged,
    check_no_outage,
    check_nothing_leaked,
    ended_by_itself,
    keys_of,
    kill_at,
    process,
    retry_after_death,
    until_held,
)
from tests.e2e.proxy import Barrier, serving

pytestmark = with_processes


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_killed_while_it_schedules_the_retirement_leaves_one_scheduled_by_its_retry(
    services: Services, when: When
) -> None:
    """After Retry, the superseded key has exactly one retirement, at the right time."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=1)))
    assert (await rotate(rotation, return_state=True)).is_completed()
    run_id = await begin_rotation(rotation)

    await kill_at(services, run_id, Effect("prefect", r"POST /api/deployments/\S+/create_flow_run"), when)
    await check_no_outage(services, rotation)
    healed = await retry_after_death(run_id, rotation.name)

    ledger = await ledger_of(rotation.name)
    assert healed.is_completed()
    assert len(ledger.superseded) == 1
    assert [run.next_scheduled_start_time for run in await retirements_of(rotation)] == ledger.due_times()
    assert {key.hash for key in keys_of(services, rotation)} == ledger.hashes()
    check_nothing_leaked(services)


async def test_a_run_that_loses_its_hold_on_the_slot_goes_on(services: Services) -> None:
    """The slot only keeps runs in order; unless another run has taken over the ledger, a rotation needs no slot."""
    rotation = await services.prepare(services.rotation())
    fault = services.openrouter_app.state.faults.add(Fault("before", "GET", "/key$", status=0, delay=HELD_SECONDS))
    run_id = await begin_rotation(rotation)

    async with serving(Barrier(services.stack.url, "refused", r"POST /api/v2/concurrency_limits/leases/")) as between:
        with process(services, run_id, between.url) as running:
            await between.reached.wait()
            fault.delay = 0
            await ended_by_itself(running)
    services.openrouter_app.state.faults.rules.remove(fault)
    state = (await ended(run_id)).state

    assert state is not None
    assert state.is_completed()
    await check_converged(services, rotation)


async def test_a_run_that_a_person_cancels_is_cancelled_and_not_failed(services: Services) -> None:
    """A cancellation that was not caused by a lost slot takes effect, and a Retry converges."""
    rotation = await services.prepare(services.rotation())
    assert (await rotate(rotation, return_state=True)).is_completed()
    fault = Fault("before", "GET", "/key$", status=0, delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(fault)
    run_id = await begin_rotation(rotation)
    running = asyncio.create_task(attempt(run_id))
    await until_held(fault)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with get_client() as client:
        state = (await client.read_flow_run(run_id)).state
    await check_no_outage(services, rotation)
    healed = await retry_after_death(run_id, rotation.name)

    assert state is not None
    assert not state.is_failed()
    assert healed.is_completed()
    await check_converged(services, rotation)
