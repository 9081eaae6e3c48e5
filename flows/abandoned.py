"""Recover runs that no process works on: never started by the worker that took them, or killed with their process.

The automation for crashed runs is faster, but an event that arrives while Redis is down never triggers it. So every
worker also polls for such runs. It compares times by the server's clock, which sets the times of all states.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.settings import get_current_settings
from prefect.states import Crashed

from blocks.errors import ServiceError
from blocks.paging import contiguous_pages
from flows.clock import ServerClock
from flows.runs import NEVER_TRIED_AGAIN
from tasks.world.api import PAGE_SIZE, api_errors, parse_time
from tasks.world.tries import try_again

LOGGER: logging.Logger = get_logger("flows.abandoned")
BEGUN_WITHIN = timedelta(minutes=2)
"""How long a run may stay Pending; after that, its worker has died or never got the answer that assigned the run."""
MISSED_HEARTBEATS = 4
"""The number of missed heartbeats after which a run counts as dead; the automation waits for three."""
HEARTBEAT, ALIVE = "prefect.flow-run.heartbeat", "key-rotation.worker.alive"
"""The heartbeat of a flow run, and the event that shows whether events arrive at all when no run sends one."""
ANY_CLOCK = timedelta(days=1)
"""The largest error of a host's clock with which its heartbeats are still found."""
TRIED_WITHIN = timedelta(days=1)
"""How long after a crash a run is still tried again, in case no worker was up when it crashed."""


@contextmanager
def _warning(doing: str) -> Iterator[None]:
    """Log a failure of Prefect's API, which would end the worker's loop; the next poll does the same again."""
    try:
        with suppress(ObjectNotFound), api_errors(doing):
            yield
    except ServiceError as error:
        LOGGER.warning("%s", error)


def _due(taken: State[Any]) -> datetime:
    """Return when a run that a worker has taken was to begin; one whose clock is ahead takes it before its time."""
    return max(taken.timestamp, taken.state_details.scheduled_time or taken.timestamp)


class Abandoned:
    """Recovers the runs of a work pool that no process works on any more.

    Args:
        client: Prefect's client.
        pool: The name of the work pool.
        clock: The server's clock; one of its own by default.
    """

    def __init__(self, client: PrefectClient, pool: str, clock: ServerClock | None = None) -> None:
        self._client = client
        self._clock = clock or ServerClock()
        self._pool_name = pool
        self._pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        self._tried: set[tuple[UUID, int]] = set()

    async def mark_not_begun(self, in_hand: Container[UUID]) -> None:
        """Mark runs as Crashed that a worker took but never started, so that they are tried again.

        Scheduled would start a run anew that another worker has recovered, or that a person has cancelled, since it was
        listed. The server does not mark a run as Crashed that has ended, and creates one try for all who ask.

        Args:
            in_hand: The runs that this worker is starting or executing.
        """
        with _warning("looking for runs that were not begun"):
            now, pending = await self._runs(StateType.PENDING)
            for run in pending:
                if run.id not in in_hand and run.state and _due(run.state) < now - BEGUN_WITHIN:
                    await self._set(run, Crashed(message="A worker took this run and did not begin it. Retry is safe."))

    async def mark_crashed(self, in_hand: Container[UUID]) -> None:
        """Mark runs as Crashed whose heartbeats have stopped, provided that other events still arrive.

        Args:
            in_hand: The runs that this worker is starting or executing.
        """
        frequency = get_current_settings().flows.heartbeat_frequency
        if frequency is None:
            return
        with _warning("looking for runs without heartbeats"):
            now, running = await self._runs(StateType.RUNNING)
            since = now - MISSED_HEARTBEATS * timedelta(seconds=frequency)
            # A Retry keeps the start time of the first attempt; its first heartbeat may not have arrived yet.
            silent = [run for run in running if run.id not in in_hand and run.state and run.state.timestamp < since]
            if silent:
                await self._mark(silent, since, now)

    async def _mark(self, silent: list[FlowRun], since: datetime, now: datetime) -> None:
        heard = await self._heartbeats(since)
        if not heard:
            # If events arrive at all, this one is there at the next poll.
            emit_event(ALIVE, {"prefect.resource.id": f"key-rotation.work-pool.{self._pool_name}"}, occurred=now)
        for run in silent if heard else ():
            resource = f"prefect.flow-run.{run.id}"
            if resource not in heard and not await self._has_arrived(resource, since):
                await self._set(run, Crashed(message="The run has sent no heartbeat for minutes. Retry is safe."))

    async def _set(self, run: FlowRun, state: State[Any]) -> None:
        # A run whose state cannot be set, such as one that was deleted meanwhile, must not keep the others waiting.
        with _warning(f"setting the state of {run.name}"):
            await self._client.set_flow_run_state(run.id, state)

    async def _heartbeats(self, since: datetime) -> set[str]:
        sent = {"occurred": {"since": since.isoformat()}, "event": {"name": [HEARTBEAT, ALIVE]}}
        answer = await self._client.request(
            "POST", "/events/count-by/{countable}", path_params={"countable": "resource"}, json={"filter": sent}
        )
        return {entry["value"] for entry in answer.json()}

    async def _has_arrived(self, resource: str, since: datetime) -> bool:
        # `occurred` is set by the sender's clock, which may be wrong; `received` by the server's.
        occurred = {"since": (since - ANY_CLOCK).isoformat(), "until": (since + ANY_CLOCK).isoformat()}
        sent = {"occurred": occurred, "event": {"name": [HEARTBEAT]}, "resource": {"id": [resource]}}
        answer = await self._client.request("POST", "/events/filter", json={"filter": sent})
        return any(parse_time(event["received"]) >= since for event in answer.json()["events"])

    async def try_again(self) -> None:
        """Schedule a try of each crashed run; if several workers do, only one try is created."""
        lately = FlowRunFilterEndTime(after_=self._clock.now() - TRIED_WITHIN)
        with _warning("looking for crashed runs"):
            now, ended = await self._runs(StateType.CRASHED, end_time=lately)
            crashed = {(run.id, run.run_count): run for run in ended}
            self._tried &= crashed.keys()
            for key in crashed.keys() - self._tried:
                try:
                    await self._try(crashed[key], now)
                except ServiceError as error:
                    if error.retryable:
                        LOGGER.warning("No try of %s was scheduled yet: %s", crashed[key].name, error)
                        continue
                    LOGGER.warning("%s is not tried again; Retry is safe. %s", crashed[key].name, error)
                self._tried.add(key)

    async def _try(self, crashed: FlowRun, now: datetime) -> None:
        with suppress(ObjectNotFound), api_errors("scheduling a try"):
            flow = await self._client.read_flow(crashed.flow_id)
            if flow.name not in NEVER_TRIED_AGAIN:
                await try_again(crashed, flow.name, now, crashed=True)

    async def _runs(self, kind: StateType, **which: Any) -> tuple[datetime, list[FlowRun]]:
        """Return the time by the server's clock, and the pool's runs in a state."""
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind]))
        body = {
            "flow_runs": FlowRunFilter(state=state, **which).model_dump(mode="json"),
            "work_pools": self._pool.model_dump(mode="json"),
            "sort": FlowRunSort.ID_DESC.value,
            "limit": PAGE_SIZE,
        }
        times: list[datetime] = []

        async def read(offset: int) -> tuple[list[FlowRun], bool]:
            answer = await self._client.request("POST", "/flow_runs/filter", json={**body, "offset": offset})
            times.append(self._clock.note(answer))
            page = FlowRun.model_validate_list(answer.json())
            return page, len(page) < PAGE_SIZE

        pages = contiguous_pages(read, attrgetter("id"), PAGE_SIZE, ServiceError)
        runs = [run async for page in pages for run in page]
        # Of several pages, the first one's time: an age that is too small is judged again by the next poll.
        return times[0], runs
