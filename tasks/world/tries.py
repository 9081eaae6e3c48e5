"""The tries of failed runs, as scheduled runs of the same deployment: labelled, tagged, one at a time."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from blocks.errors import KeyRotationError
from tasks.model.tries import (
    NUMBER,
    QUIET_TRIES,
    RUN,
    Coming,
    Next,
    Try,
    asked_to_wait,
    is_try,
    next_try,
    number_of,
    passes_by_itself,
)
from tasks.world.api import ENTRIES, LEDGER_TAG, Json, api_errors, parse_time
from tasks.world.gate import persistently, sent_once
from tasks.world.inventory import is_emergency, rotation_name
from tasks.world.naming import run_name

TRY_TAG = f"{LEDGER_TAG}_try"
"""The tag of every try; no rotation's name contains an underscore."""
NEIGHBOURS = 50
"""How many runs of the deployment are looked at: those to come, and the newest that have ended."""
ATTEMPTS, PATIENCE_SECONDS = 60, 60.0
"""How often, and for how long, a call about tries is made: as long as Prefect's client tries to report a run's end."""
TOLD = frozenset({"Failed", "Crashed"})
"""The names of the states of which a person is told."""
T = TypeVar("T")


@dataclass(frozen=True)
class Purpose:
    """What a run is for: runs of a deployment with the same purpose stand for each other.

    Args:
        rotation: The name of its rotation; empty for a run of none.
        parameters: Its parameters with the rotation's name in place of the settings, as JSON.
    """

    rotation: str
    parameters: str

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **changes: Any) -> Purpose:
        """Return the purpose of a run with these parameters, some of them changed."""
        rotation = rotation_name(parameters, "")
        # A switch that is off is the same as one that is not given.
        said = {name: value for name, value in {**parameters, **changes, "rotation": rotation}.items() if value}
        return cls(rotation, json.dumps(said, sort_keys=True, default=str))

    @property
    def digest(self) -> str:
        """A short name for it."""
        return sha256(self.parameters.encode()).hexdigest()[:16]


async def schedule_try(failed: FlowRun, flow: str, error: KeyRotationError, now: datetime) -> Next | None:
    """Schedule the try that follows a failure, or find the run that stands for it.

    Args:
        failed: The flow run that has failed.
        flow: The name of its flow.
        error: Why.
        now: The current time, UTC.

    Returns:
        The try; `None` for a failure that does not pass by itself, and for a run without a deployment.

    Raises:
        ServiceError: Prefect's API failed, so there may be no try.
    """
    if not passes_by_itself(error):
        return None
    return await try_again(failed, flow, now, asked=asked_to_wait(error))


async def try_again(
    failed: FlowRun, flow: str, now: datetime, *, asked: timedelta = timedelta(0), crashed: bool = False
) -> Next | None:
    """Schedule the try that follows a failure or a crash, or find the run that stands for it.

    Args:
        failed: The flow run that has failed.
        flow: The name of its flow.
        now: The current time, UTC.
        asked: How long a service has asked to wait.
        crashed: Whether the run's process has died.

    Returns:
        The try; `None` for a run without a deployment, and for a crash after which another run has done its work.

    Raises:
        ServiceError: Prefect's API failed, so there may be no try.
    """
    if failed.deployment_id is None:
        return None
    purpose, runs = Purpose.of(failed.parameters), await _neighbours(failed)
    alike = [run for run in runs if Purpose.of(run["parameters"]) == purpose]
    if crashed and any(_completed_since(failed, run) for run in alike):
        return None
    following = next_try(
        purpose.digest,
        read_try(failed, now),
        [_coming(run) for run in alike if run["state_type"] == "SCHEDULED"],
        now,
        emergency=is_emergency(failed.parameters),
        asked=asked,
        crashed=crashed,
    )
    if following.run is None:
        return await _create(failed, flow, purpose, following, now)
    if not following.run.number:
        await _mark(following.run.id, following.number)
    return following


def read_try(run: FlowRun, now: datetime) -> Try:
    """Return what a flow run is a try of: itself, if it finishes no other.

    Args:
        run: The flow run.
        now: The current time, UTC, which is when a run began that Prefect does not know to have started.
    """
    started = run.start_time.astimezone(UTC) if run.start_time else now
    found = Try.read(run.labels, run.id, started, run.expected_start_time if run.auto_scheduled else None)
    # A Retry is manual.
    return replace(found, scheduled_for=None) if run.run_count > 1 else found


def _completed_since(failed: FlowRun, run: Json) -> bool:
    ended = parse_time(run["end_time"]) if run.get("end_time") else None
    return run["state_type"] == "COMPLETED" and bool(ended and failed.end_time and ended > failed.end_time)


def _coming(run: Json) -> Coming:
    at = parse_time(run.get("next_scheduled_start_time") or run["expected_start_time"])
    labels, own = _labels(run), UUID(run["id"])
    return Coming(own, at, number_of(labels), Try.read(labels, own, at).run_id if is_try(labels) else None)


def _labels(run: Json) -> Json:
    return run.get("labels") or {}


async def _neighbours(run: FlowRun) -> list[Json]:
    """Read the newest runs of a run's deployment that are for the same rotation, itself left out."""
    rotation = run.parameters.get("rotation")
    body: Json = {
        "deployments": {"id": {"any_": [str(run.deployment_id)]}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": NEIGHBOURS,
    }
    if isinstance(rotation, str):
        # One deployment serves all rotations: its tries and scheduled runs have the rotation's name as a tag.
        body["flow_runs"] = {"tags": {"all_": [rotation]}}

    async def ask(client: PrefectClient) -> list[Json]:
        return ENTRIES.validate_python((await client.request("POST", "/flow_runs/filter", json=body)).json())

    found = await _persistently("looking for tries", ask)
    return [each for each in found or () if each["id"] != str(run.id)]


async def _create(failed: FlowRun, flow: str, purpose: Purpose, following: Next, now: datetime) -> Next | None:
    origin = read_try(failed, now)
    deployment_id, name = failed.deployment_id, run_name(flow, failed.parameters)

    async def create(client: PrefectClient) -> FlowRun:
        return await client.create_flow_run_from_deployment(
            deployment_id,  # type: ignore[arg-type]
            parameters=failed.parameters,
            state=Scheduled(scheduled_time=following.at),
            name=f"{name}, try {following.number}",
            tags=[LEDGER_TAG, TRY_TAG, *filter(None, [purpose.rotation])],
            idempotency_key=f"try after attempt {failed.run_count} of {failed.id}",
            labels={**origin.labels(following.number)},
        )

    made = await _persistently("scheduling a try", create)
    if made is None or made.state is None or not made.state.is_scheduled():
        return None
    at = made.next_scheduled_start_time or made.expected_start_time or following.at
    return Next(number_of(made.labels), at.astimezone(UTC))


async def _mark(run_id: UUID, number: int) -> None:
    await _persistently(
        "marking the next run as a try", lambda client: client.update_flow_run_labels(run_id, {NUMBER: number})
    )


async def _persistently(doing: str, call: Callable[[PrefectClient], Awaitable[T]]) -> T | None:
    """Make a call that may be repeated; `None` where what it is about does not exist."""
    answers: list[T] = []

    async def attempt() -> None:
        async with sent_once(doing) as client:
            answers.append(await call(client))

    with suppress(ObjectNotFound):
        await persistently(attempt, attempts=ATTEMPTS, within=PATIENCE_SECONDS)
    return answers[0] if answers else None


async def end_tries(succeeded: FlowRun, now: datetime, *, only_own: bool) -> bool:
    """Delete the tries that a success has made needless.

    An ordinary rotation does not do what the try of an emergency is to do; an emergency does what any other is to do.

    Args:
        succeeded: The flow run that has succeeded.
        now: The current time, UTC.
        only_own: Whether it has done nothing that another run was to do, so that the tries of others stay, and what
            failed is over only where it has failed itself.

    Returns:
        Whether a person was told of the failure that is over now.

    Raises:
        ServiceError: Prefect's API failed; a try that is left finds nothing to do.
    """
    if succeeded.deployment_id is None:
        return False
    purpose, own = Purpose.of(succeeded.parameters), read_try(succeeded, now).run_id
    runs = [run for run in await _neighbours(succeeded) if _serves(purpose, run["parameters"])]
    if only_own:
        runs = [run for run in runs if _labels(run).get(RUN, run["id"]) == str(own)]
    for run in runs:
        if run["state_type"] == "SCHEDULED" and is_try(_labels(run)):
            await _persistently("deleting a try", partial(PrefectClient.delete_flow_run, flow_run_id=UUID(run["id"])))
        elif run["state_type"] == "SCHEDULED" and number_of(_labels(run)):
            await _mark(UUID(run["id"]), 0)
    ended = [run for run in runs if run.get("end_time") and run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"}]
    last = max(ended, key=lambda run: parse_time(run["end_time"]), default={})
    # A regular run in the place of a try has its number from the failure of another one.
    number = number_of(succeeded.labels) if is_try(succeeded.labels) or not only_own else 0
    if last.get("state_name") in TOLD or number > QUIET_TRIES:
        return True
    return succeeded.run_count > 1 and await _was_told(succeeded.id)


def _serves(purpose: Purpose, parameters: Mapping[str, Any]) -> bool:
    return purpose in (Purpose.of(parameters), Purpose.of(parameters, emergency=True))


async def _was_told(run_id: UUID) -> bool:
    client, _ = get_or_create_client()
    with api_errors("reading the states of this run"):
        states = [state for state in await client.read_flow_run_states(run_id) if state.is_final()]
    return bool(states) and states[-1].name in TOLD


async def has_completed(run_ids: Iterable[UUID]) -> bool:
    """Return whether one of some flow runs was in the state Completed; one that Prefect does not know was not.

    Raises:
        ServiceError: Prefect's API failed.
    """
    client, _ = get_or_create_client()
    for run_id in run_ids:
        with suppress(ObjectNotFound), api_errors("reading the states of a run"):
            if any(state.is_completed() for state in await client.read_flow_run_states(run_id)):
                return True
    return False
