"""Keep the actions of automations through an outage of Redis or the database.

Prefect 3.8.8 gives an action up for good where it fails by `ActionFailed`, and repeats it where it fails otherwise, at
most `PREFECT_REDIS_MESSAGING_CONSUMER_MAX_RETRIES` times. What is wrong with that is corrected here, because Prefect
has no settings for it:

- Redis or the API fails while an action is prepared: a webhook is never called, or a notification is sent without its
  text. The action must stay pending.
- A receiver of notifications fails: some blocks raise an error that Prefect repeats, so that a person is notified again
  and again, and all other actions wait. The action must fail.
- Redis fails after an action was done, and before Prefect has recorded that: it would be done once more.
- Each action looks up Prefect's API by hashing all settings and configuring all loggers, 0.1 s of CPU time, in which no
  other service goes on.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from httpx import HTTPError, Response
from prefect.server.api import server
from prefect.server.events.actions import (
    Action,
    ActionFailed,
    ExternalDataAction,
    SendNotification,
    record_action_happening,
)
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from prefect.server.api.clients import OrchestrationClient
    from prefect.server.events.schemas.automations import TriggeredAction


class OutageError(Exception):
    """Redis or Prefect's API failed during an action; the message that requested the action stays pending."""


def keep_actions_pending_during_outages() -> None:
    """Correct how the actions of this process end."""
    fail, succeed, notify = Action.fail, Action.succeed, SendNotification.act
    orchestration_client = ExternalDataAction.orchestration_client

    async def fail_unless_outage(self: Action, triggered_action: TriggeredAction, reason: str) -> None:
        failure = sys.exception()
        if failure is not None and isinstance(failure.__context__, RedisError | OutageError):
            raise OutageError(reason) from failure
        await fail(self, triggered_action, reason)

    async def record_and_succeed(self: Action, triggered_action: TriggeredAction) -> None:
        await record_action_happening(triggered_action.id)
        await succeed(self, triggered_action)

    async def notify_once(self: SendNotification, triggered_action: TriggeredAction) -> None:
        failure = ""
        try:
            await notify(self, triggered_action)
        except HTTPError as error:
            failure = type(error).__name__
        if failure:
            raise ActionFailed(f"Notification failed: {failure}")

    async def client_that_notices_outages(
        self: ExternalDataAction, triggered_action: TriggeredAction
    ) -> OrchestrationClient:
        client = await orchestration_client(self, triggered_action)
        client._http_client.event_hooks["response"].append(_raise_if_outage)  # noqa: SLF001 - there is no public one
        return client

    Action.fail = fail_unless_outage  # type: ignore[method-assign]
    Action.succeed = record_and_succeed  # type: ignore[method-assign]
    SendNotification.act = notify_once  # type: ignore[method-assign]
    ExternalDataAction.orchestration_client = client_that_notices_outages  # type: ignore[method-assign]
    server.create_app = functools.cache(server.create_app)


async def _raise_if_outage(response: Response) -> None:
    if response.is_server_error:
        raise OutageError(f"Prefect's API answered {response.status_code} to {response.request.url.path}")
