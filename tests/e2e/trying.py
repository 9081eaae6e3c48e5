"""Make runs fail for a passing reason in tests, and find their tries."""

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
from tests.e2e.conftest import Services
from tests.e2e.driver import attempt, deploy

NOWHERE = "http://127.0.0.1:9/api/v1"


async def tries_of(name: str) -> list[FlowRun]:
    """Return the existing tries of a rotation, whatever their state."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[TRY_TAG, name]))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=tags)


async def pending(name: str) -> list[FlowRun]:
    """Return the scheduled tries of a rotation."""
    return [run for run in await tries_of(name) if run.state is not None and run.state.is_scheduled()]


def wait_for(planned: FlowRun) -> timedelta:
    """Return the time until a run is due."""
    at = planned.expected_start_time
    assert at is not None
    return timedelta(seconds=at.timestamp() - datetime.now(UTC).timestamp())


async def come(run_id: UUID) -> State[Any]:
    """Make a run due now, and execute it."""
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Scheduled(), force=True)
    return await attempt(run_id)


async def fail(services: Services, run_id: UUID) -> State[Any]:
    """Execute a run while OpenRouter is down; it is up again afterwards."""
    await services.connect(NOWHERE)
    state = await come(run_id)
    await services.connect(services.openrouter_url)
    return state


async def scheduled_run(rotation: Rotation) -> UUID:
    """Return a run that the schedule of the rotation's deployment created."""
    deployment_id = await deploy(rotation)
    async with get_client() as client:
        await client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment_id}, json={})
        runs = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
            sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        )
    return next(run.id for run in runs if run.auto_scheduled)
