"""The due emergencies of a work pool, which its workers take before all other runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.clock import ServerClock
from tasks.model.parameters import is_emergency
from tasks.world.naming import EMERGENCY

MOST_LISTED = 50
"""How many due runs a worker requests at once, at most; the server refuses a limit above 200."""
MOST_REMEMBERED = 500
"""How many runs that are no emergencies are not listed again, at most."""
FEW = 10
"""How many of the newest runs are listed while more are due than can be remembered."""


class DueEmergencies:
    """Finds the emergencies among the due runs of a work pool, which the server cannot tell from the others.

    While many runs are due, they are not listed again at every look, which would cost the server as much as to execute
    them.

    Args:
        clock: The server's clock.
    """

    def __init__(self, clock: ServerClock) -> None:
        self._clock = clock
        self._ordinary: deque[UUID] = deque(maxlen=MOST_REMEMBERED)

    def forget(self) -> None:
        """Forget which runs are no emergencies; called when few runs are due."""
        self._ordinary.clear()

    async def find(self, client: PrefectClient, pool: WorkPool, queues: Iterable[str]) -> list[WorkerFlowRunResponse]:
        """Return the due emergencies.

        Args:
            client: The worker's client.
            pool: The work pool.
            queues: The names of the queues to look in; all if empty.
        """
        # Newest first: the server's own order by scheduled time would list a run that was just started last. A Retry
        # leaves the expected start of a run as it was, but such a run has its name already.
        limit = MOST_LISTED if len(self._ordinary) < MOST_REMEMBERED else FEW
        newest, retried = await asyncio.gather(
            self._scheduled(client, pool, queues, limit, id=FlowRunFilterId(not_any_=[*self._ordinary])),
            self._scheduled(client, pool, queues, MOST_LISTED, name=FlowRunFilterName(like_=f"{EMERGENCY} ")),
        )
        found = {run.id: run for run in (*newest, *retried) if is_emergency(run.parameters)}
        self._ordinary.extend(run.id for run in newest if run.id not in found)
        asked = {run.work_queue_id for run in found.values() if run.work_queue_id}
        open_queues = {queue for queue in asked if await _may_overtake_in(client, pool, queue)}
        return [
            WorkerFlowRunResponse(work_pool_id=pool.id, work_queue_id=run.work_queue_id, flow_run=run)
            for run in found.values()
            if run.work_queue_id in open_queues
        ]

    async def _scheduled(
        self, client: PrefectClient, pool: WorkPool, queues: Iterable[str], limit: int, **only: Any
    ) -> list[FlowRun]:
        names = sorted(queues)
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                **only,
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=self._clock.now()),
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name])),
            work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=names)) if names else None,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=limit,
        )


async def _may_overtake_in(client: PrefectClient, pool: WorkPool, queue_id: UUID) -> bool:
    # Emergencies respect the pause and the concurrency limits of pools and queues, too.
    try:
        queue = await client.read_work_queue(queue_id)
    except ObjectNotFound:
        # The queue was deleted after the run was read; an exception here would stop the worker.
        return False
    return not any((each.is_paused or each.concurrency_limit is not None) for each in (queue, pool))
