"""A run's writes to Prefect's own API: the process is killed before and after each, or the hold on its slot is lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Literal

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.variables import Variable

from flows import rotate
from sandbox.server import Fault
from tasks.ledger import Ledger, ledger_variable
from tasks.rotation import Rotation
from tests.e2e.conftest import World, with_processes
from tests.e2e.processes import HELD_SECONDS, check_converged, give_the_slot_back, held_by, process, until_held
from tests.e2e.proxy import proxy

pytestmark = with_processes

WRITES = [
    pytest.param("POST /api/variables/", 0, False, id="the ledger is made"),
    pytest.param("PATCH /api/variables/", 0, True, id="the intent"),
    pytest.param("PATCH /api/variables/", 1, True, id="the key's hash"),
    pytest.param("PATCH /api/variables/", 2, True, id="the current key"),
    pytest.param("PATCH /api/variables/", 3, True, id="the revocation"),
    pytest.param("PATCH /api/block_documents/", 0, True, id="the secret"),
]
"""Each write of a rotation, how many like it come before, and whether a key is there already."""


async def retirements_of(rotation: Rotation) -> list[FlowRun]:
    """The retirements that were scheduled for a rotation."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[rotation.name]))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=tags)


async def latest_run_of(rotation: Rotation) -> FlowRun:
    """The run of a rotation that was started last."""
    async with get_client() as client:
        runs = await client.read_flow_runs(limit=50, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    parameters = {run.id: run.parameters.get("rotation") for run in runs}  # of retire it is a name
    named = {key for key, value in parameters.items() if isinstance(value, dict) and value["name"] == rotation.name}
    return next(run for run in runs if run.id in named)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("write", "skip", "later"), WRITES)
async def test_a_process_killed_at_a_write_to_prefect_is_healed_by_the_next_run(
    world: World, write: str, skip: int, later: bool, when: Literal["before", "after"]
) -> None:
    """SIGKILL before or after each write of the ledger or of a Prefect secret: no outage; the next run converges."""
    rotation = await world.prepare(world.rotation())
    if later:
        assert (await rotate(rotation, return_state=True)).is_completed()

    async with proxy(world.stack.url, when, write, skip) as between:
        with process(world, rotation, between.url) as running:
            await asyncio.wait_for(between.reached.wait(), 60)
            running.kill()
    dead = {key for key in await held_by(rotation) - {"placeholder"} if not world.openrouter.is_live(key)}
    await give_the_slot_back(rotation)
    healed = await rotate(rotation, return_state=True)

    assert dead == set()
    assert healed.is_completed()
    await check_converged(world, rotation)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_killed_while_it_schedules_the_retirement_leaves_one_scheduled_by_the_next_run(
    world: World, when: Literal["before", "after"]
) -> None:
    """After the next run, each superseded key has its retirement: one, at its time."""
    world.stack.cli("deploy", "--name", "retire", "--no-prompt")
    rotation = await world.prepare(world.rotation(overlap=timedelta(days=1)))
    assert (await rotate(rotation, return_state=True)).is_completed()

    async with proxy(world.stack.url, when, r"POST /api/deployments/\S+/create_flow_run") as between:
        with process(world, rotation, between.url) as running:
            await asyncio.wait_for(between.reached.wait(), 60)
            running.kill()
    await give_the_slot_back(rotation)
    healed = await rotate(rotation, return_state=True)

    ledger = Ledger.model_validate(await Variable.aget(ledger_variable(rotation.name)))
    assert healed.is_completed()
    assert len(ledger.superseded) == 2
    assert sorted(run.next_scheduled_start_time for run in await retirements_of(rotation)) == ledger.wakes()  # type: ignore[type-var]
    assert {key.hash for key in world.openrouter.live_keys()} == ledger.hashes()


async def test_a_run_that_loses_its_hold_on_the_slot_ends_with_a_plain_message(world: World) -> None:
    """When the slot's lease is not renewed, the run says where it stopped and what is live, and writes no more."""
    rotation = await world.prepare(world.rotation())
    assert (await rotate(rotation, return_state=True)).is_completed()
    live = world.openrouter.live_keys()[0]
    fault = world.openrouter_app.state.faults.add(Fault("before", "GET", "/keys/", status=0, delay=HELD_SECONDS))

    async with proxy(world.stack.url, "refused", r"POST /api/v2/concurrency_limits/leases/") as between:
        with process(world, rotation, between.url) as running:
            await asyncio.to_thread(running.wait, 60)
    world.openrouter_app.state.faults.rules.remove(fault)
    state = (await latest_run_of(rotation)).state
    held = await held_by(rotation)
    assert (await rotate(rotation, return_state=True)).is_completed()

    assert state is not None
    assert state.is_failed()
    assert f" failed: This run lost its hold on key-rotation-{rotation.name}" in str(state.message)
    assert f"The key {live.label} is live" in str(state.message)
    assert "Retry is safe" in str(state.message)
    assert held == {live.secret}
    await check_converged(world, rotation)


async def test_a_run_that_a_person_cancels_is_cancelled_and_not_failed(world: World) -> None:
    """A cancellation that did not come from the slot goes through, and the next run converges."""
    rotation = await world.prepare(world.rotation())
    fault = world.openrouter_app.state.faults.add(
        Fault("before", "GET", "/keys/", status=0, delay=HELD_SECONDS, times=1)
    )
    running = asyncio.create_task(rotate(rotation, return_state=True))
    await until_held(world.openrouter_app, fault)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    state = (await latest_run_of(rotation)).state

    assert state is not None
    assert not state.is_failed()
    assert (await rotate(rotation, return_state=True)).is_completed()
    await check_converged(world, rotation)
