"""Execute runs in this process without delay, because a real worker takes ten seconds for each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.flow_engine import run_flow
from prefect.flows import load_flow_from_flow_run

from sandbox.stack import Stack

POLL_SECONDS = 0.2


@contextmanager
def at_work(stack: Stack) -> Iterator[None]:
    """Execute runs that become due within the context, one after another.

    Args:
        stack: The server that schedules the runs.

    Yields:
        Nothing.
    """
    stop = threading.Event()
    since = datetime.now(UTC)

    def work() -> None:
        with stack.as_client():
            asyncio.run(_work(since, stop))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def _work(since: datetime, stop: threading.Event) -> None:
    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    begun = FlowRunFilterExpectedStartTime(after_=since)
    async with get_client() as client:
        while not stop.is_set():
            due = FlowRunFilterNextScheduledStartTime(before_=datetime.now(UTC))
            wanted = FlowRunFilter(state=scheduled, expected_start_time=begun, next_scheduled_start_time=due)
            for run in await client.read_flow_runs(flow_run_filter=wanted):
                running: Any = run_flow(await load_flow_from_flow_run(run), flow_run=run, return_type="state")
                await running
            await asyncio.sleep(POLL_SECONDS)
