"""Trim the Redis streams through which Prefect's events pass.

prefect-redis 0.3.0 deletes a message once it was delivered to all groups of consumers, and so loses one that killed
services had in hand, or that waits to be handled again because the database is down. `deploy/fleet.env` switches that
off, and the services of a fleet trim here instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect.logging import get_logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

LOGGER: logging.Logger = get_logger("flows.event_streams")
GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "events": {
        "ReactiveTriggers": "reactive-triggers",
        "EventPersister": "event-persister",
        "TaskRunRecorder": "task-run-recorder",
        "EventLogger": "event-logger",
    },
    "actions": {"Actions": "actions"},
}
"""The streams that services read, and the group of each service that does (Prefect 3.8.8)."""
LIVE: Final = ("logs", "work-pool-worker-channel-snapshots")
"""The streams whose readers only want what is new."""
EVERY_SECONDS = 60.0
KEPT_LIVE = timedelta(minutes=5)


async def trim_regularly(connect: Callable[[], Redis], enabled: Collection[str]) -> None:
    """Trim all streams once a minute, until cancelled. While Redis is down, this is only logged.

    Args:
        connect: Returns a client; called each time, because prefect-redis replaces its clients when Redis fails.
        enabled: The class names of the services that run.
    """
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            for stream, services in GROUPS.items():
                await trim(connect(), stream, {services[name] for name in enabled if name in services})
            for stream in LIVE:
                await connect().xtrim(stream, minid=_id_at(datetime.now(UTC) - KEPT_LIVE), approximate=False)
        except RedisError as error:
            LOGGER.warning("The streams of events are not trimmed now: %s", type(error).__name__)


async def trim(redis: Redis, stream: str, expected: Collection[str]) -> None:
    """Delete the messages of a stream that every expected group has dealt with.

    Args:
        redis: Redis.
        stream: The name of the stream.
        expected: The groups. While one does not exist yet, nothing is deleted; other groups are nobody's any more.

    Raises:
        RedisError: Redis failed.
    """
    if not expected or not await redis.exists(stream):
        return
    groups: list[dict[str, Any]] = [each for each in await redis.xinfo_groups(stream) if each["name"] in expected]
    if len(groups) < len(expected):
        return
    oldest_pending = {group["name"]: (await redis.xpending(stream, group["name"]))["min"] for group in groups}
    await redis.xtrim(stream, minid=first_needed(groups, oldest_pending), approximate=False)


def first_needed(groups: Sequence[Mapping[str, Any]], oldest_pending: Mapping[str, str | None]) -> str:
    """Return the id of the first message to keep.

    Args:
        groups: The stream's groups, as `XINFO GROUPS` returns them.
        oldest_pending: For each group, the first message that it was given and has not acknowledged.
    """
    return min((oldest_pending[group["name"]] or group["last-delivered-id"] for group in groups), key=_position)


def _id_at(moment: datetime) -> str:
    return f"{int(moment.timestamp() * 1000)}-0"


def _position(message_id: str) -> tuple[int, int]:
    milliseconds, _, number = message_id.partition("-")
    return int(milliseconds), int(number or 0)
