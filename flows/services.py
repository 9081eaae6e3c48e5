"""Run Prefect's services: `python -m flows.services`, in the place of `prefect server services start`.

Prefect 3.8.8 starts each service once and never looks at it again. One that could not start, because the database was
away, is missing from then on: the process looks alive, and no automation fires. This process ends in that case, so that
whatever supervises it starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from prefect.cli._server_utils import _run_all_services
from prefect.logging import get_logger
from prefect.server.services.base import Service

LOGGER: logging.Logger = get_logger("flows.services")


async def run_until_one_ends() -> str:
    """Run all services that are enabled.

    Returns:
        The name of the service that has ended, and why.
    """
    ended: asyncio.Queue[str] = asyncio.Queue()
    for service in Service.enabled_services():
        _watch(service, ended)
    running = asyncio.create_task(_run_all_services())
    running.add_done_callback(lambda task: ended.put_nowait(f"All of them ended: {task}"))
    try:
        return await ended.get()
    finally:
        running.cancel()


def _watch(service: type[Service], ended: asyncio.Queue[str]) -> None:
    start = service.start

    async def watched(self: Service) -> None:
        why = "it returned"
        try:
            await start(self)
        except Exception as error:
            why = type(error).__name__
            raise
        finally:
            ended.put_nowait(f"{service.__name__} has ended: {why}")

    service.start = watched  # type: ignore[method-assign, assignment] # the only way to see its end


def main() -> int:
    """Run the services until one of them ends or this process is interrupted.

    Returns:
        The exit code: 1 where a service has ended.
    """
    LOGGER.error("%s. This process ends, to be started again.", asyncio.run(run_until_one_ends()))
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
