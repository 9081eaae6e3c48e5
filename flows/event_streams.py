"""Trim the Redis streams through which Prefect's events pass.

prefect-redis 0.3.0 deletes a message once it was delivered to all groups of consumers, and so loses one that killed
services had in hand, or that waits to be handled again because the database is down. `deploy/fleet.env` switches that
off, and the services of a fleet trim here instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect.logging import get_logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

LOGGER: logging.Logger = get_logger("flows.event_streams")
STREAMS: Final = ("events", "actions", "logs", "work-pool-worker-channel-snapshots")
"""The topics of Prefect 3.8.8, each of which is a stream of that name."""
EVERY_SECONDS = 60.0
KEPT_AT_MOST = timedelta(days=1)
"""How long a message is kept that nobody has dealt with: a group that is no longer used must not fill Redis."""
KEPT_WITHOUT_GROUPS = timedelta(minutes=5)
"""How long a message is kept in a stream without groups, whose readers only want what is new."""


async def trim_regularly(connect: Callable[[], Redis]) -> None:
    """Trim all streams once a minute, until cancelled. While Redis is down, this is only logged.

    Args:
        connect: Returns a client; called each time, because prefect-redis closes its clients when Redis fails.
    """
    while True:
        try:
            for stream in STREAMS:
                await trim(connect(), stream, datetime.now(UTC))
        except RedisError as error:
            LOGGER.warning("The streams of events are not trimmed now: %s", type(error).__name__)
        await asyncio.sleep(EVERY_SECONDS)


async def trim(redis: Redis, stream: str, now: datetime) -> None:
    """Delete the messages of a stream that every group has dealt with.

    Args:
        redis: Redis.
        stream: The name of the stream.
        now: The time.

    Raises:
        RedisError: Redis failed.
    """
    if not await redis.exists(stream):
        return
    groups: list[dict[str, Any]] = await redis.xinfo_groups(stream)
    oldest_pending = {group["name"]: (await redis.xpending(stream, group["name"]))["min"] for group in groups}
    await redis.xtrim(stream, minid=first_needed(groups, oldest_pending, now), approximate=False)


def first_needed(groups: Sequence[Mapping[str, Any]], oldest_pending: Mapping[str, str | None], now: datetime) -> str:
    """Return the id of the first message to keep.

    Args:
        groups: The stream's groups, as `XINFO GROUPS` returns them.
        oldest_pending: For each group, the first message that it was given and has not acknowledged.
        now: The time.
    """
    if not groups:
        return _id_at(now - KEPT_WITHOUT_GROUPS)
    needed = [oldest_pending[group["name"]] or group["last-delivered-id"] for group in groups]
    return max(min(needed, key=_position), _id_at(now - KEPT_AT_MOST), key=_position)


def _id_at(moment: datetime) -> str:
    return f"{int(moment.timestamp() * 1000)}-0"


def _position(message_id: str) -> tuple[int, int]:
    milliseconds, _, number = message_id.partition("-")
    return int(milliseconds), int(number or 0)
