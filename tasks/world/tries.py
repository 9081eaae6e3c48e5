"""The tries of failed runs: labelled, tagged, scheduled runs of the same deployment, one at a time."""

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
from tasks.model.parameters import is_emergency, rotation_name
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
from tasks.world.api import ENTRIES, OWN_TAG, Json, api_errors, as_not_found, parse_time
from tasks.world.gate import persistently, sent_once
from tasks.world.naming import run_name

TRY_TAG = f"{OWN_TAG}_try"
"""The tag of every try; no rotation's name contains an underscore."""
NEIGHBOURS = 50
"""How many runs of the deployment are read: the coming ones, and the newest that have ended."""
ATTEMPTS, PATIENCE_SECONDS = 60, 60.0
"""How often, and for how long, a request about tries is repeated: as long as Prefect's client reports a run's end."""
ALERTING_STATES = frozenset({"Failed", "Crashed"})
"""The names of the states that alert a person."""
T = TypeVar("T")


@dataclass(frozen=True)
class Purpose:
    """The purpose of a run; runs of a deployment with the same purpose can replace each other.

    Args:
        rotation: The name of its rotation; empty for a run of none.
        parameters: Its parameters as JSON, with the rotation's name instead of its settings.
    """

    rotation: str
    parameters: str

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **changes: Any) -> Purpose:
        """Return the purpose of a run with these parameters, with some of them changed."""
        rotation = rotation_name(parameters, "")
        # A switch that is off is equivalent to one that is missing.
        said = {name: value for name, value in {**parameters, **changes, "rotation": rotation}.items() if value}
        return cls(rotation, json.dumps(said, sort_keys=True, default=str))

    @property
    def digest(self) -> str:
        """A short hash of the purpose."""
        return sha256(self.parameters.encode()).hexdigest()[:16]


async def schedule_try(failed: FlowRun, flow: str, error: KeyRotationError, now: datetime) -> Next | None:
    """Schedule the try that follows a failure, or return the run that takes its place.

    Args:
        failed: The failed flow run.
        flow: The name of its flow.
        error: The failure.
        now: The current time, UTC.

    Returns:
        The try; `None` for a failure that does not pass by itself, or a run whose deployment does not exist.

    Raises:
        ServiceError: Prefect's API failed, so there may be no try.
    """
    if not passes_by_itself(error):
        return None
    return await try_again(failed, flow, now, asked=asked_to_wait(error))


async def try_again(
    failed: FlowRun, flow: str, now: datetime, *, asked: timedelta = timedelta(0), crashed: bool = False
) -> Next | None:
    """Schedule the try that follows a failure or a crash, or return the run that takes its place.

    Args:
        failed: The failed flow run.
        flow: The name of its flow.
        now: The current time, UTC.
        asked: How long a service asked to wait.
        crashed: Whether the run's process died.

    Returns:
        The try; `None` for a run without a deployment that exists, or if another run has done a crashed run's work.

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
    """Return the run that a flow run finishes as a try; itself, if it is no try.

    Args:
        run: The flow run.
        now: The current time, UTC; stands for the start of a run that Prefect does not know to have started.
    """
    started = run.start_time.astimezone(UTC) if run.start_time else now
    found = Try.read(run.labels, run.id, started, run.expected_start_time if run.auto_scheduled else None)
    # A Retry counts as manual.
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
    """Return the newest runs of a run's deployment that are for the same rotation, without the run itself."""
    rotation = run.parameters.get("rotation")
    body: Json = {
        "deployments": {"id": {"any_": [str(run.deployment_id)]}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": NEIGHBOURS,
    }
    if isinstance(rotation, str):
        # One deployment serves all rotations; its tries and scheduled runs are tagged with the rotation's name.
        body["flow_runs"] = {"tags": {"all_": [rotation]}}

    async def ask(client: PrefectClient) -> list[Json]:
        return ENTRIES.validate_python((await client.request("POST", "/flow_runs/filter", json=body)).json())

    found = await _persistently("looking for tries", ask)
    return [each for each in found if each["id"] != str(run.id)]


async def _create(failed: FlowRun, flow: str, purpose: Purpose, following: Next, now: datetime) -> Next | None:
    origin = read_try(failed, now)
    deployment_id, name = failed.deployment_id, run_name(flow, failed.parameters)

    async def create(client: PrefectClient) -> FlowRun:
        return await client.create_flow_run_from_deployment(
            deployment_id,  # type: ignore[arg-type]
            parameters=failed.parameters,
            state=Scheduled(scheduled_time=following.at),
            name=f"{name}, try {following.number}",
            tags=[OWN_TAG, TRY_TAG, *filter(None, [purpose.rotation])],
            idempotency_key=f"try after attempt {failed.run_count} of {failed.id}",
            labels={**origin.labels(following.number)},
        )

    made = await _if_it_exists("scheduling a try", create)
    if made is None or made.state is None:
        return None
    at = made.next_scheduled_start_time or made.expected_start_time or following.at
    return Next(number_of(made.labels), at.astimezone(UTC), is_taken=not made.state.is_scheduled())


async def _mark(run_id: UUID, number: int) -> None:
    await _if_it_exists(
        "marking the next run as a try", lambda client: client.update_flow_run_labels(run_id, {NUMBER: number})
    )


async def _if_it_exists(doing: str, call: Callable[[PrefectClient], Awaitable[T]]) -> T | None:
    """Make a request that is safe to repeat; `None` if its run or deployment was deleted."""

    async def attempt(client: PrefectClient) -> T:
        with as_not_found():
            return await call(client)

    with suppress(ObjectNotFound):
        return await _persistently(doing, attempt)
    return None


async def _persistently(doing: str, call: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Make a request that is safe to repeat."""
    answers: list[T] = []

    async def attempt() -> None:
        async with sent_once(doing) as client:
            answers.append(await call(client))

    await persistently(attempt, attempts=ATTEMPTS, within=PATIENCE_SECONDS)
    return answers[0]


async def end_tries(succeeded: FlowRun, now: datetime, *, only_own: bool) -> bool:
    """Delete the tries that a success has made obsolete.

    An emergency also does the work of an ordinary rotation, but not the other way round.

    Args:
        succeeded: The successful flow run.
        now: The current time, UTC.
        only_own: Whether it did no work on behalf of other runs, so that their tries stay, and only its own earlier
            failure is over.

    Returns:
        Whether a person was alerted to the failure that is over now.

    Raises:
        ServiceError: Prefect's API failed; a remaining try will find nothing to do.
    """
    if succeeded.deployment_id is None:
        return False
    purpose, own = Purpose.of(succeeded.parameters), read_try(succeeded, now).run_id
    runs = [run for run in await _neighbours(succeeded) if _serves(purpose, run["parameters"])]
    if only_own:
        runs = [run for run in runs if _labels(run).get(RUN, run["id"]) == str(own)]
    for run in runs:
        if run["state_type"] == "SCHEDULED" and is_try(_labels(run)):
            await _if_it_exists("deleting a try", partial(PrefectClient.delete_flow_run, flow_run_id=UUID(run["id"])))
        elif run["state_type"] == "SCHEDULED" and number_of(_labels(run)):
            await _mark(UUID(run["id"]), 0)
    ended = [run for run in runs if run.get("end_time") and run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"}]
    last = max(ended, key=lambda run: parse_time(run["end_time"]), default={})
    # The number of a regular run in a try's place comes from another run's failure.
    number = number_of(succeeded.labels) if is_try(succeeded.labels) or not only_own else 0
    if last.get("state_name") in ALERTING_STATES or number > QUIET_TRIES:
        return True
    return succeeded.run_count > 1 and await _had_alerted(succeeded.id)


def _serves(purpose: Purpose, parameters: Mapping[str, Any]) -> bool:
    return purpose in (Purpose.of(parameters), Purpose.of(parameters, emergency=True))


async def _had_alerted(run_id: UUID) -> bool:
    client, _ = get_or_create_client()
    with api_errors("reading the states of this run"):
        states = [state for state in await client.read_flow_run_states(run_id) if state.is_final()]
    return bool(states) and states[-1].name in ALERTING_STATES


async def has_completed(run_ids: Iterable[UUID]) -> bool:
    """Return whether any of these flow runs was ever Completed; an unknown one does not count.

    Raises:
        ServiceError: Prefect's API failed.
    """
    client, _ = get_or_create_client()
    for run_id in run_ids:
        with suppress(ObjectNotFound), api_errors("reading the states of a run"):
            if any(state.is_completed() for state in await client.read_flow_run_states(run_id)):
                return True
    return False
