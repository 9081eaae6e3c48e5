"""How tests let runs fail for something that passes, and find the tries of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Scheduled

from tasks.model.rotation import Rotation
from tasks.world.tries import TRY_TAG
from tests.e2e.conftest import World
from tests.e2e.driver import attempt, deploy

NOWHERE = "http://127.0.0.1:9/api/v1"


async def tries_of(name: str) -> list[FlowRun]:
    """The tries of a rotation that are there, whatever their state."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[TRY_TAG, name]))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=tags)


async def pending(name: str) -> list[FlowRun]:
    """The tries of a rotation that are still to come."""
    return [run for run in await tries_of(name) if run.state is not None and run.state.is_scheduled()]


def wait_for(planned: FlowRun) -> timedelta:
    """How far away a run is."""
    at = planned.expected_start_time
    assert at is not None
    return timedelta(seconds=at.timestamp() - datetime.now(UTC).timestamp())


async def come(run_id: UUID) -> State[Any]:
    """Let the time of a run have come, and run it."""
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Scheduled(), force=True)
    return await attempt(run_id)


async def fail(world: World, run_id: UUID) -> State[Any]:
    """Let a run find OpenRouter away, which is back when it has ended."""
    await world.connect(NOWHERE)
    state = await come(run_id)
    await world.connect(world.openrouter_url)
    return state


async def scheduled_run(rotation: Rotation) -> UUID:
    """A run that the schedule of the rotation's deployment has made."""
    deployment_id = await deploy(rotation)
    async with get_client() as client:
        await client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment_id}, json={})
        runs = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
            sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        )
    return next(run.id for run in runs if run.auto_scheduled)
