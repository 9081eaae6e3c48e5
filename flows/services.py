"""Run Prefect's services: `python -m flows.services` replaces `prefect server services start`.

Prefect 3.8.8 never restarts a service that has ended, for example because the database was down at its start: the
process looks healthy, but no automation fires. This process exits instead, so that its supervisor restarts it.
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
    """Run all enabled services until one ends.

    Returns:
        The name of that service, and why it ended.
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

    service.start = watched  # type: ignore[method-assign, assignment] # the only way to observe its end


def main() -> int:
    """Run the services until one of them ends or this process is interrupted.

    Returns:
        The exit code: 1 if a service has ended.
    """
    LOGGER.error("%s. This process ends, to be started again.", asyncio.run(run_until_one_ends()))
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
