"""Run Prefect's services: `python -m flows.services` replaces `prefect server services start`.

It differs in what an outage of Redis or the database leaves behind, as seen in Prefect 3.8.8:

- A service that has ended, for example because the database was down at its start, is never restarted: the process
  looks healthy, but no automation fires, or no run is scheduled. This process exits instead, so that its supervisor
  restarts it.
- A message that killed services had in hand, or that waits to be handled again, may be deleted from Redis, and then
  reaches no automation. Here `flows.event_streams` deletes what was dealt with.
- An automation's action during which Redis or the API fails is lost. Here it stays pending (`flows.event_actions`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from threading import Timer
from typing import Any

from docket import Worker
from prefect.cli._server_utils import _run_all_services
from prefect.logging import get_logger
from prefect.server.services.base import Service
from prefect.settings import get_current_settings

from flows.event_actions import keep_actions_pending_during_outages
from flows.event_streams import trim_regularly

LOGGER: logging.Logger = get_logger("flows.services")
REDIS_BROKER = "prefect_redis.messaging"
STOPPED = "SIGTERM"
STOP_WITHIN_SECONDS = 20.0
"""How long the services may take to store what they have in memory; Docker kills after 30 seconds here."""
END_WITHIN_SECONDS = 30.0
"""When the process ends, whatever still runs in it: a supervisor restarts only one that has ended."""


async def run_until_one_ends() -> str:
    """Run all enabled services until one ends, or the process is to stop.

    Returns:
        `STOPPED`, or the name of the service that has ended, and why.
    """
    ended: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.put_nowait, STOPPED)
    for service in Service.enabled_services():
        _watch(service, "start", service.__name__, ended)
    _watch(Worker, "run_forever", "Docket's worker, which schedules runs and finds late ones,", ended)
    running = [asyncio.create_task(_run_all_services(), name="services")]
    if get_current_settings().server.events.messaging_broker == REDIS_BROKER:
        from prefect_redis.client import get_async_redis_client  # installed where it is the broker

        enabled = {service.__name__ for service in Service.enabled_services()}
        trimming = trim_regularly(get_async_redis_client, enabled)
        running.append(asyncio.create_task(trimming, name="trimming of Redis streams"))
    for task in running:
        task.add_done_callback(lambda task: ended.put_nowait(f"The {task.get_name()} ended: {task}"))
    try:
        why = await ended.get()
        if why != STOPPED:
            LOGGER.error("%s. This process ends, to be started again.", why)
        return why
    finally:
        _end_for_certain()
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=STOP_WITHIN_SECONDS)


def _watch(owner: type[Any], method: str, name: str, ended: asyncio.Queue[str]) -> None:
    # Prefect keeps neither the tasks nor the objects where they could be asked: this is the only way to observe an end.
    run = getattr(owner, method)

    async def watched(self: object) -> None:
        why = "it returned"
        try:
            await run(self)
        except BaseException as error:
            why = type(error).__name__
            raise
        finally:
            ended.put_nowait(f"{name} has ended: {why}")

    setattr(owner, method, watched)


def _end_for_certain() -> None:
    # `asyncio.run` waits without a limit for tasks that it has cancelled, and for threads.
    end = Timer(END_WITHIN_SECONDS, os._exit, [1])
    end.daemon = True
    end.start()


def main() -> int:
    """Run the services until one of them ends, or this process is asked to stop.

    Returns:
        The exit code: 0 after SIGTERM, 1 if a service has ended.
    """
    keep_actions_pending_during_outages()
    return 0 if asyncio.run(run_until_one_ends()) == STOPPED else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
