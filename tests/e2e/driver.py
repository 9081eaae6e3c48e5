"""How tests drive a worker: start runs of a deployment, wait for them, retry them as the dashboard does."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType

from flows import rotate
from tasks.rotation import Rotation

WAIT_SECONDS = 90.0


async def deploy_to(pool: str) -> None:
    """Make a work pool with a deployment `rotate/<pool>`, so that no other worker takes its runs."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
        flow_id = await client.create_flow(rotate)
        await client.create_deployment(
            flow_id, pool, work_pool_name=pool, entrypoint="flows.rotate:rotate", pull_steps=[]
        )


async def start(rotation: Rotation, *, emergency: bool = False, deployment_name: str = "example") -> UUID:
    """Start a run of a rotation through the example deployment, or another one."""
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"rotate/{deployment_name}")
        parameters = {"rotation": rotation.model_dump(mode="json"), "emergency": emergency}
        run = await client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    return run.id


async def retry(run_id: UUID) -> None:
    """Press Retry."""
    async with get_client() as client:
        state: State[Any] = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Retry from the UI")
        await client.set_flow_run_state(run_id, state)


async def cancel(run_id: UUID) -> None:
    """Press Cancel."""
    async with get_client() as client:
        await client.set_flow_run_state(run_id, State(type=StateType.CANCELLING, name="Cancelling"))


async def ended(run_id: UUID, *, attempt: int = 1, within: float = WAIT_SECONDS) -> FlowRun:
    """Wait until a run's attempt has ended."""
    deadline = time.monotonic() + within
    async with get_client() as client:
        while True:
            run = await client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final() and run.run_count >= attempt:
                return run
            assert time.monotonic() < deadline, f"the run is still {run.state_name}"
            await asyncio.sleep(0.1)
