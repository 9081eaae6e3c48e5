"""Whether a connection or a destination works right now, and when its login ends, without changing anything."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import aclosing
from datetime import datetime
from typing import NamedTuple

from blocks.errors import KeyRotationError
from tasks.world.connections import open_connection
from tasks.world.destinations import open_destination


class Outcome(NamedTuple):
    """What a check has found out about a block that works.

    Args:
        sentence: What works.
        ends: When its login ends, UTC; `None` where it does not, or that is not known.
        place: The place that a destination means; two blocks of different names may mean the same one.
    """

    sentence: str
    ends: datetime | None
    place: str | None = None


async def check_connection(name: str, field: str) -> Outcome:
    """Prove that a connection works right now.

    Args:
        name: The name of the `openrouter-credentials` block.
        field: The field that names it, for the message.

    Returns:
        What works, and when the management key ends.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    async with await open_connection(name, field) as client:
        return Outcome(await client.check(), await _if_told(client.login_ends()))


async def check_destination(name: str, field: str) -> Outcome:
    """Prove that a destination works right now.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the message.

    Returns:
        What works, the place, and when the login ends.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    async with aclosing(await open_destination(name, field)) as destination:
        return Outcome(await destination.check(), await _if_told(destination.login_ends()), destination.place())


async def _if_told(look_up: Awaitable[datetime | None]) -> datetime | None:
    try:
        return await look_up
    except KeyRotationError:
        # A login that may not look at itself works all the same.
        return None
