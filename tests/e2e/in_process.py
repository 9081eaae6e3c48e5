"""A worker of the type `key-rotation` in the test's process, and the results of its runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.logging.handlers import APILogHandler

from flows.worker import KeyRotationWorker

STARTED_WITHIN = 200.0
POLL_SECONDS = 0.1


@asynccontextmanager
async def at_work(pool: str, limit: int = 20) -> AsyncIterator[KeyRotationWorker]:
    """Run a worker in this process; it drains at the end."""

    async def poll(worker: KeyRotationWorker) -> None:
        while True:
            await worker.get_and_submit_flow_runs()
            await asyncio.sleep(POLL_SECONDS)

    async with KeyRotationWorker(pool, limit=limit, prefetch_seconds=0) as worker:
        polling = asyncio.create_task(poll(worker))
        try:
            yield worker
        finally:
            polling.cancel()


async def log_of(run_id: UUID) -> list[str]:
    """Return the log of a run that the server has stored."""
    await APILogHandler.aflush()
    async with get_client() as client:
        found = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
    return [entry.message for entry in found]


def message(run: FlowRun) -> str:
    """Return the message of a run's state."""
    return str(run.state.message if run.state else "")


async def pause(pool: str, is_paused: bool) -> None:
    """Pause a pool's only queue, or resume it."""
    async with get_client() as client:
        queue = await client.read_work_queue_by_name("default", work_pool_name=pool)
        await client.update_work_queue(queue.id, is_paused=is_paused)


async def running(event: threading.Event) -> None:
    """Wait until a test's flow has started."""
    assert await asyncio.to_thread(event.wait, STARTED_WITHIN), "the run never began"
