"""A run's writes to Prefect's own API: the process is killed before and after each, or the hold on its slot is lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Literal

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.variables import Variable

from flows import rotate
from tasks.ledger import Ledger, ledger_variable
from tasks.rotation import Rotation
from tests.e2e.conftest import World, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.processes import check_converged, give_the_slot_back, held_by, process
from tests.e2e.proxy import proxy

WRITES = [
    pytest.param("POST /api/variables/", 0, False, id="the ledger is made"),
    pytest.param("PATCH /api/variables/", 0, True, id="the intent"),
    pytest.param("PATCH /api/variables/", 1, True, id="the key's hash"),
    pytest.param("PATCH /api/variables/", 2, True, id="the current key"),
    pytest.param("PATCH /api/variables/", 3, True, id="the revocation"),
    pytest.param("PATCH /api/block_documents/", 0, True, id="the secret"),
]
"""Each write of a rotation, how many like it come before, and whether a key is there already."""


async def runs_of(rotation: Rotation) -> list[FlowRun]:
    """The retirements that were scheduled for a rotation."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[rotation.name]))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=tags)


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
            await asyncio.wait_for(between.reached.wait(), 30)
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
            await asyncio.wait_for(between.reached.wait(), 30)
            running.kill()
    await give_the_slot_back(rotation)
    healed = await rotate(rotation, return_state=True)

    ledger = Ledger.model_validate(await Variable.aget(ledger_variable(rotation.name)))
    assert healed.is_completed()
    assert len(ledger.superseded) == 2
    assert sorted(run.next_scheduled_start_time for run in await runs_of(rotation)) == ledger.wakes()  # type: ignore[type-var]
    assert {key.hash for key in world.openrouter.live_keys()} == ledger.hashes()
