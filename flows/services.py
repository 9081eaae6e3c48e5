"""Run Prefect's services: `python -m flows.services` replaces `prefect server services start`.

It differs in what an outage of Redis or the database leaves behind, as seen in Prefect 3.8.8:

- A service that has ended, for example because the database was down at its start, is never restarted: the process
  looks healthy, but no automation fires. This process exits instead, so that its supervisor restarts it.
- A message that killed services had in hand, or that waits to be handled again, may be deleted from Redis, and then
  reaches no automation. Here `flows.event_streams` deletes what was dealt with.
- An automation's action during which Redis or the API fails counts as failed for good, so a notification or a webhook
  call is lost. Here it stays pending, and is done again as soon as they are back.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from httpx import HTTPStatusError
from prefect.cli._server_utils import _run_all_services
from prefect.logging import get_logger
from prefect.server.events.actions import Action, ExternalDataAction
from prefect.server.services.base import Service
from prefect.settings import get_current_settings
from redis.exceptions import RedisError

from flows.event_streams import trim_regularly

if TYPE_CHECKING:
    from httpx import Response
    from prefect.server.events.schemas.automations import TriggeredAction

LOGGER: logging.Logger = get_logger("flows.services")
REDIS_BROKER = "prefect_redis.messaging"


class OutageError(Exception):
    """Redis or Prefect's API failed during an action; the message that requested the action stays pending."""


def keep_actions_pending_during_outages() -> None:
    """Let an action that an outage of Prefect's own parts has stopped be repeated.

    Prefect gives up an action by `ActionFailed`, and repeats one that ends with any other error up to
    `PREFECT_REDIS_MESSAGING_CONSUMER_MAX_RETRIES` times. An action is recorded once it is done, and run-deployment
    sends an idempotency key, so a repetition does nothing twice that was done.
    """
    fail, reason_from_response = Action.fail, ExternalDataAction.reason_from_response

    async def fail_unless_outage(self: Action, triggered_action: TriggeredAction, reason: str) -> None:
        failure = sys.exception()
        if failure is not None and _is_outage(failure.__context__):
            raise OutageError(reason) from failure
        await fail(self, triggered_action, reason)

    def reason_unless_outage(self: ExternalDataAction, response: Response) -> str:
        reason = reason_from_response(self, response)
        if response.is_server_error:
            raise OutageError(reason)
        return reason

    Action.fail = fail_unless_outage  # type: ignore[method-assign] # Prefect has no setting for it
    ExternalDataAction.reason_from_response = reason_unless_outage  # type: ignore[method-assign]


def _is_outage(error: BaseException | None) -> bool:
    return isinstance(error, RedisError) or (isinstance(error, HTTPStatusError) and error.response.is_server_error)


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
    trimming = asyncio.create_task(_trim_streams())
    try:
        return await ended.get()
    finally:
        running.cancel()
        trimming.cancel()


async def _trim_streams() -> None:
    if get_current_settings().server.events.messaging_broker != REDIS_BROKER:
        return
    from prefect_redis.client import get_async_redis_client  # installed where it is the broker

    await trim_regularly(get_async_redis_client)


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
    keep_actions_pending_during_outages()
    LOGGER.error("%s. This process ends, to be started again.", asyncio.run(run_until_one_ends()))
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
