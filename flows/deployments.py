"""A rotation's deployment: read, create and update it, and run it for the first key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.client.utilities import get_or_create_client
from prefect.context import FlowRunContext
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from blocks.errors import ConfigurationError
from flows.rotate import rotate
from tasks.model.rotation import Rotation
from tasks.model.schedules import SLUG
from tasks.world.api import OWN_TAG, api_errors, as_not_found
from tasks.world.deployments import longest_interval, own_schedule, read_timetable
from tasks.world.gate import persistently, sent_once

WORK_POOL = "key-rotation"
"""The work pool for a rotation whose creating run has no work pool."""
FIRST_KEY_TAG = f"{OWN_TAG}_first-key"
"""The tag of every run for a first key; no rotation's name, which is a tag of all its runs, contains an underscore."""
STARTS_WITHIN_SECONDS = 45.0
"""How long to wait for a run to start; a worker with a limit of one cannot start it while this run waits."""
ENDS_WITHIN_SECONDS = 300.0
"""How long to wait for a run to end, in total."""
POLL_SECONDS = 0.5
SAVING = "saving the deployment"
SAVED_WITHIN_SECONDS = 45.0
"""How late the last attempt to save a deployment may start: after one without an answer, there is another look."""


async def read_deployment(rotation: str) -> DeploymentResponse | None:
    """Return the deployment of a rotation; `None` if it does not exist."""
    client, _ = get_or_create_client()
    try:
        with api_errors("reading the deployment"):
            return await client.read_deployment_by_name(f"rotate/{rotation}")
    except ObjectNotFound:
        return None


async def save_deployment(
    before: DeploymentResponse | None, rotation: Rotation, schedule: RRuleSchedule | None, active: bool
) -> DeploymentResponse:
    """Create the deployment of a rotation, or update what differs.

    Args:
        before: The existing deployment, if any.
        rotation: The rotation.
        schedule: When to rotate; `None` leaves the schedules as they are.
        active: Whether the schedule is active.

    Returns:
        The deployment after the change.

    Raises:
        ConfigurationError: The work pool does not exist, or a deployment was removed or changed meanwhile.
        ServiceError: Prefect's API failed.
    """
    await persistently(partial(_save, before, rotation, schedule, active), within=SAVED_WITHIN_SECONDS)
    with api_errors("reading the saved deployment"), _found(_removed(rotation.name)):
        client, _ = get_or_create_client()
        return await client.read_deployment_by_name(f"rotate/{rotation.name}")


async def _save(
    before: DeploymentResponse | None, rotation: Rotation, schedule: RRuleSchedule | None, active: bool
) -> None:
    with api_errors(SAVING):
        new = await _new(rotation, schedule, active) if before is None else {}
        # Right before each write: an earlier attempt may have arrived, or somebody else have changed the deployment.
        now = await read_deployment(rotation.name)
        if now is None and before is not None:
            raise _removed(rotation.name)
        if now is None:
            async with sent_once(SAVING) as client:
                with _found(_missing(new["work_pool_name"])):
                    await client.create_deployment(**new)
        elif changes := await _changes(now, rotation, schedule, active):
            if before is None or _settings(now) != _settings(before):
                raise ConfigurationError(
                    f"The deployment rotate/{rotation.name} was changed meanwhile. Run the form again."
                )
            async with sent_once(SAVING) as client:
                with _found(_removed(rotation.name)):
                    await client.update_deployment(now.id, DeploymentUpdate(**changes))


def _settings(deployment: DeploymentResponse) -> tuple[Any, ...]:
    """Return what a form may change in a deployment."""
    schedules = [(each.slug, each.schedule, each.active) for each in deployment.schedules]
    pool = deployment.work_pool_name, deployment.work_queue_name
    return deployment.id, deployment.parameters, schedules, deployment.paused, pool


def _removed(rotation: str) -> ConfigurationError:
    return ConfigurationError(f"The deployment rotate/{rotation} was removed meanwhile. Run the form again.")


@contextmanager
def _found(refusal: ConfigurationError) -> Iterator[None]:
    """Refuse where something does not exist, however Prefect's client tells it."""
    try:
        with as_not_found():
            yield
    except ObjectNotFound:
        raise refusal from None


async def _new(rotation: Rotation, schedule: RRuleSchedule | None, active: bool) -> dict[str, Any]:
    """Return the arguments that create the deployment of a rotation."""
    client, _ = get_or_create_client()
    own = await _own_deployment()
    pool, queue = _pool_and_queue(own)
    return {
        "flow_id": await client.create_flow(rotate),
        "name": rotation.name,
        "description": _description(rotation.name),
        "tags": [OWN_TAG, rotation.name],
        "entrypoint": "flows.rotate:rotate",
        "pull_steps": [],
        "parameters": {"emergency": False, "rotation": rotation.model_dump(mode="json")},
        "parameter_openapi_schema": _schema(),
        "enforce_parameter_schema": True,
        "schedules": [DeploymentScheduleCreate(schedule=schedule, active=active, slug=SLUG)] if schedule else [],
        # No concurrency_limit: an emergency would queue behind other runs. Each rotation has its own slot.
        "work_pool_name": pool,
        "work_queue_name": queue,
        "job_variables": own.job_variables if own else None,
    }


def _schema() -> dict[str, Any]:
    return parameter_schema(rotate).model_dump(exclude_unset=True)


def _pool_and_queue(own: DeploymentResponse | None) -> tuple[str, str | None]:
    """Return the work pool and queue of this run, so that a rotation has the same workers, image and environment."""
    return (own.work_pool_name, own.work_queue_name) if own and own.work_pool_name else (WORK_POOL, None)


def _missing(pool: str) -> ConfigurationError:
    return ConfigurationError(
        f"The work pool {pool} does not exist: create it with `prefect work-pool create --type key-rotation {pool}`. "
        "Nothing was changed."
    )


def _description(name: str) -> str:
    return (
        f"Rotates the API key of the rotation {name}. It can be run at any time; Retry of a failed run finishes the "
        f"same rotation. The artifact rotation-{name} shows its keys."
    )


async def _own_deployment() -> DeploymentResponse | None:
    context = FlowRunContext.get()
    deployment_id = context.flow_run.deployment_id if context and context.flow_run else None
    if deployment_id is None:
        return None
    client, _ = get_or_create_client()
    with _found(ConfigurationError("The deployment of this run was removed meanwhile. Nothing was changed.")):
        return await client.read_deployment(deployment_id)


async def _changes(
    before: DeploymentResponse, rotation: Rotation, schedule: RRuleSchedule | None, active: bool
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if before.work_pool_name is None:
        # Prefect takes a deleted pool out of its deployments, and does not put one of the same name back.
        client, _ = get_or_create_client()
        pool, queue = _pool_and_queue(await _own_deployment())
        with _found(_missing(pool)):
            await client.read_work_pool(pool)
        changes = {"work_pool_name": pool, "work_queue_name": queue}
    parameters = {**before.parameters, "rotation": rotation.model_dump(mode="json")}
    if parameters != before.parameters:
        # The schema of an earlier version would refuse the fields that have come since.
        changes |= {"parameters": parameters, "parameter_openapi_schema": _schema()}
    own = own_schedule(before)
    # An unchanged timetable keeps its start date, and so the date of the next run.
    same = own is not None and (schedule is None or _is_same_timetable(own.schedule, schedule))
    wanted = own.schedule if own is not None and same else schedule
    # The schedule of a paused deployment stays active, so that it applies again when the deployment is resumed.
    on = active or (before.paused and own is not None and own.active)
    if wanted is not None and (own is None or not same or own.active != on):
        # Where one schedule has no slug, as those made in the dashboard, Prefect replaces all by what it is sent.
        others = [
            DeploymentScheduleUpdate(**each.model_dump(include=set(DeploymentScheduleUpdate.model_fields)))
            for each in before.schedules
            if each.slug != SLUG
        ]
        changes["schedules"] = [DeploymentScheduleUpdate(slug=SLUG, schedule=wanted, active=on), *others]
    if before.paused and active:
        changes["paused"] = False
    if before.global_concurrency_limit is not None:
        # Set by an earlier version; an emergency would queue behind other runs.
        changes |= {"concurrency_limit": None, "concurrency_options": None}
    return changes


async def longest_interval_after(
    before: DeploymentResponse | None, schedule: RRuleSchedule | None, active: bool
) -> timedelta:
    """Return the longest time between two scheduled rotations of a deployment as it is about to be saved.

    Args:
        before: The existing deployment, if any.
        schedule: The new schedule; `None` leaves the schedules as they are.
        active: Whether the new schedule is active.
    """
    own = own_schedule(before) if before else None
    wanted = schedule or (own.schedule if own else None)
    others = [each.schedule for each in before.schedules if each.active and each.slug != SLUG] if before else []
    return await longest_interval([*others, wanted] if active and wanted else others)


def _is_same_timetable(before: Any, after: RRuleSchedule) -> bool:
    return isinstance(before, RRuleSchedule) and read_timetable(before) == read_timetable(after)


async def make_first_key(deployment: DeploymentResponse) -> FlowRun:
    """Run a rotation's deployment for its first key, wait up to a deadline, and return the run.

    If an earlier attempt has started such a run, wait for that one, so that no second key is created.
    """
    with api_errors("starting the first rotation"):
        runs = await _first_runs(deployment.id)
        alive = next((run for run in runs if run.state is not None and not run.state.is_final()), None)
        run = alive or await arun_deployment(
            deployment.id,
            timeout=0,
            as_subflow=False,
            flow_run_name=f"first key of {deployment.name}",
            tags=[OWN_TAG, deployment.name, FIRST_KEY_TAG],
            idempotency_key=f"{FIRST_KEY_TAG} {deployment.id} {len(runs)}",
        )
        return await _watch(run)


async def _first_runs(deployment_id: UUID) -> list[FlowRun]:
    client, _ = get_or_create_client()
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]), tags=FlowRunFilterTags(all_=[FIRST_KEY_TAG])
        )
    )


async def _watch(run: FlowRun) -> FlowRun:
    client, _ = get_or_create_client()
    begun = time.monotonic()
    while run.state is None or not run.state.is_final():
        waits = run.state is None or run.state.is_scheduled()
        if time.monotonic() - begun >= (STARTS_WITHIN_SECONDS if waits else ENDS_WITHIN_SECONDS):
            break
        await asyncio.sleep(POLL_SECONDS)
        run = await client.read_flow_run(run.id)
    return run
