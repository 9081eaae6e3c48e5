"""Runs that nobody is at work on any more: what a worker took and did not begin, and what died with its process.

The automation for crashed runs marks the latter sooner, but what fires while Redis is away is lost. So workers look at
what there is, again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterStartTime,
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
from prefect.states import Crashed, Scheduled

from blocks.errors import ServiceError
from flows.runs import ORDERS
from tasks.world.tries import try_again

LOGGER: logging.Logger = get_logger("flows.abandoned")
BEGUN_WITHIN = timedelta(minutes=2)
"""How long a run may stay Pending: then the worker that took it has died, or never heard that it took it."""
MISSED_HEARTBEATS = 4
"""After how many heartbeats that did not come a run is dead; the automation waits for three."""
HEARTBEAT, ALIVE = "prefect.flow-run.heartbeat", "key-rotation.worker.alive"
"""The event that each run sends, and the one that shows that events arrive where no run sends any."""
TRIED_WITHIN = timedelta(days=1)
"""How long after a crash a run is still tried again, where no worker was there before."""


class Abandoned:
    """Looks after the runs of a work pool that nobody is at work on any more.

    Args:
        client: Prefect's client.
        pool: The name of the work pool.
    """

    def __init__(self, client: PrefectClient, pool: str) -> None:
        self._client = client
        self._pool_name = pool
        self._pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        self._tried: set[tuple[UUID, int]] = set()

    async def schedule_again(self, in_hand: Container[UUID]) -> None:
        """Schedule again what some worker took and did not begin; nothing at the server does.

        Args:
            in_hand: The runs that this worker has taken.
        """
        since = datetime.now(UTC) - BEGUN_WITHIN
        for run in await self._runs(StateType.PENDING):
            if run.id not in in_hand and run.state and run.state.timestamp < since:
                again: State[Any] = Scheduled(message="A worker took this run and did not begin it.")
                # What was deleted meanwhile is no reason to end the worker.
                with suppress(ObjectNotFound):
                    await self._client.set_flow_run_state(run.id, again)

    async def mark_the_silent(self, in_hand: Container[UUID]) -> None:
        """Mark each run as Crashed that has sent no heartbeat for long, where the heartbeats of others arrive.

        Args:
            in_hand: The runs that this worker has taken.
        """
        frequency = get_current_settings().flows.heartbeat_frequency
        if frequency is None:
            return
        since = datetime.now(UTC) - MISSED_HEARTBEATS * timedelta(seconds=frequency)
        running = await self._runs(StateType.RUNNING, start_time=FlowRunFilterStartTime(before_=since))
        # A Retry keeps the first attempt's start, and its first heartbeat is on its way.
        silent = [run for run in running if run.id not in in_hand and run.state and run.state.timestamp < since]
        if not silent:
            return
        heard = await self._heartbeats(since)
        if not heard:
            # This one arrives before the next look, if any does.
            emit_event(ALIVE, {"prefect.resource.id": f"key-rotation.work-pool.{self._pool_name}"})
        for run in silent if heard else ():
            if f"prefect.flow-run.{run.id}" not in heard:
                dead: State[Any] = Crashed(message="The run has sent no heartbeat for minutes. Retry is safe.")
                with suppress(ObjectNotFound):
                    await self._client.set_flow_run_state(run.id, dead)

    async def _heartbeats(self, since: datetime) -> set[str]:
        sent = {"occurred": {"since": since.isoformat()}, "event": {"name": [HEARTBEAT, ALIVE]}}
        answer = await self._client.request(
            "POST", "/events/count-by/{countable}", path_params={"countable": "resource"}, json={"filter": sent}
        )
        return {entry["value"] for entry in answer.json()}

    async def try_again(self) -> None:
        """Schedule a try of each run that has crashed; of several workers that do so, one schedules it."""
        now = datetime.now(UTC)
        lately = FlowRunFilterEndTime(after_=now - TRIED_WITHIN)
        crashed = {(run.id, run.run_count): run for run in await self._runs(StateType.CRASHED, end_time=lately)}
        self._tried &= crashed.keys()
        for key in crashed.keys() - self._tried:
            with suppress(ObjectNotFound):
                flow = await self._client.read_flow(crashed[key].flow_id)
                if flow.name not in ORDERS:
                    try:
                        await try_again(crashed[key], flow.name, now, crashed=True)
                    except ServiceError as error:
                        # Prefect's loop would end the worker; the next look schedules it.
                        LOGGER.warning("No try of %s was scheduled yet: %s", crashed[key].name, error)
                        continue
            self._tried.add(key)

    async def _runs(self, kind: StateType, **which: Any) -> list[FlowRun]:
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind]))
        return await self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state, **which),
            work_pool_filter=self._pool,
            sort=FlowRunSort.END_TIME_DESC,
        )
