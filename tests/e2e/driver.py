"""Drive runs in tests: start them, with or without a worker, wait for them, retry and cancel them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, State, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.flow_engine import run_flow_async
from prefect.flows import load_flow_from_flow_run

from flows import retire, rotate
from sandbox.stack import POOL, WORKER_TYPE
from tasks.model.events import Event, resource
from tasks.model.rotation import Rotation
from tasks.world.api import OWN_TAG

WAIT_SECONDS = 200.0
JOB_VARIABLES = {"command": "python -m prefect.engine"}
"""The job variables of the deployments in prefect.yaml."""
UNFINISHED = [kind for kind in StateType if kind not in TERMINAL_STATES]


async def deploy_to(pool: str, kind: str = WORKER_TYPE) -> None:
    """Create a work pool with a deployment `rotate/<pool>`, so that no other worker takes its runs."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type=kind), overwrite=True)
        flow_id = await client.create_flow(rotate)
        await client.create_deployment(
            flow_id,
            pool,
            work_pool_name=pool,
            entrypoint="flows.rotate:rotate",
            pull_steps=[],
            job_variables=JOB_VARIABLES,
        )


async def start(
    rotation: Rotation, *, emergency: bool = False, deployment_name: str = "example", queue: str | None = None
) -> UUID:
    """Start a run of a rotation through the example deployment, or another one."""
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"rotate/{deployment_name}")
        parameters = {"rotation": rotation.model_dump(mode="json"), "emergency": emergency}
        run = await client.create_flow_run_from_deployment(deployment.id, parameters=parameters, work_queue_name=queue)
    return run.id


async def begin(what: Flow[Any, Any], parameters: dict[str, Any]) -> UUID:
    """Create a run that no worker takes; the test executes it, here or in a process of its own."""
    async with get_client() as client:
        entrypoint = f"{what.fn.__module__}:{what.fn.__name__}"
        deployment_id = await client.create_deployment(
            await client.create_flow(what), "by-hand", entrypoint=entrypoint, pull_steps=[]
        )
        run = await client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
    return run.id


async def deploy(rotation: Rotation) -> UUID:
    """Deploy a rotation with a schedule, as a person does."""
    deployment = await rotate.ato_deployment(
        name=rotation.name,
        parameters={"rotation": rotation.model_dump(mode="json")},
        work_pool_name=POOL,
        interval=timedelta(days=30),
    )
    return await deployment.aapply()


async def deploy_retirements() -> None:
    """Create the deployment whose runs a rotation schedules."""
    deployment = await retire.ato_deployment(name="retire", work_pool_name=POOL)
    await deployment.aapply()


async def retirements_of(rotation: Rotation) -> list[FlowRun]:
    """Return the scheduled retirements of a rotation."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[OWN_TAG, rotation.name]))
    async with get_client() as client:
        return await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["retire"])), flow_run_filter=tags
        )


async def begin_rotation(rotation: Rotation) -> UUID:
    """Create a run of a rotation that no worker takes."""
    return await begin(rotate, {"rotation": rotation.model_dump(mode="json")})


async def attempt(run_id: UUID) -> State[Any]:
    """Execute an existing flow run in this process, and return its final state."""
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
    flow = await load_flow_from_flow_run(run, use_placeholder_flow=False)
    state = await run_flow_async(flow, flow_run=run, parameters=run.parameters, return_type="state")
    assert state is not None
    return state


async def retry(run_id: UUID) -> None:
    """Retry a run, as the dashboard does."""
    async with get_client() as client:
        state: State[Any] = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Retry from the UI")
        await client.set_flow_run_state(run_id, state)


async def cancel(run_id: UUID) -> None:
    """Cancel a run, as the dashboard does."""
    async with get_client() as client:
        await client.set_flow_run_state(run_id, State(type=StateType.CANCELLING, name="Cancelling"))


async def ended(run_id: UUID, *, attempt: int = 1, within: float = WAIT_SECONDS) -> FlowRun:
    """Wait until an attempt of a run has ended."""
    deadline = time.monotonic() + within
    async with get_client() as client:
        while True:
            run = await client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final() and run.run_count >= attempt:
                return run
            assert time.monotonic() < deadline, f"the run is still {run.state_name}"
            await asyncio.sleep(0.3)


async def events(rotation: Rotation, *wanted: Event) -> list[dict[str, Any]]:
    """Return the stored events of a rotation; Prefect stores them a moment after they were sent."""
    match = {
        "occurred": {"since": (datetime.now(UTC) - timedelta(hours=1)).isoformat()},
        "event": {"name": [event.value for event in wanted]},
        "any_resource": {"id": [resource(rotation.name)["prefect.resource.id"]]},
    }
    found: list[dict[str, Any]] = []
    async with get_client() as client:
        for _ in range(100):
            found = (await client.request("POST", "/events/filter", json={"filter": match})).json()["events"]
            if found:
                break
            await asyncio.sleep(0.1)
    return found


async def end_all_runs() -> None:
    """End all runs that a test has started or scheduled."""
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    over = {"type": "CANCELLED", "name": "Cancelled", "message": "The test is over."}
    wanted = {"flow_runs": unfinished.model_dump(mode="json"), "state": over, "force": True}
    async with get_client() as client:
        while runs := await client.read_flow_runs(flow_run_filter=unfinished):
            for run in runs:
                if run.start_time:
                    signal_run(run.id, signal.SIGKILL)
            await client._client.post("/flow_runs/bulk_set_state", json=wanted)


def processes_of(run_id: UUID) -> list[int]:
    """Return the processes that a worker has started for a flow run, found by their environment."""
    wanted = f"PREFECT__FLOW_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def signal_run(run_id: UUID, number: signal.Signals) -> None:
    """Send a signal to every process of a flow run."""
    for pid in processes_of(run_id):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
