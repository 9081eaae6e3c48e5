"""Whether a connection or a destination works right now, and when its login ends, without changing anything.

The arguments of each check are those of `load_block`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple

from prefect.blocks.core import Block

from blocks import InfisicalCredentials, VaultCredentials
from blocks.errors import KeyRotationError
from blocks.openrouter.client import OpenRouterClient
from tasks.model.management_keys import InUse
from tasks.world.connections import CONNECTION_TYPE, load_connection
from tasks.world.destinations import open_destination
from tasks.world.management_keys import remember_use
from tasks.world.optional import Part, if_available
from tasks.world.stored_blocks import NOTHING, load_block


class Outcome(NamedTuple):
    """What a check has found out about a block that works.

    Args:
        sentence: What works.
        ends: When its login ends, UTC; `None` where it does not, or that is not known.
        place: The place that a destination means; two blocks of different names may mean the same one.
        in_use: Since when a connection uses its management key.
    """

    sentence: str
    ends: datetime | None
    place: str | None = None
    in_use: InUse | None = None


async def check_connection(name: str, field: str, loaded: Mapping[str, Block] = NOTHING) -> Outcome:
    """Prove that a connection, which is named without its block type, works right now.

    Returns:
        What works, and when the management key ends.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    credentials = await load_connection(name, field, loaded)
    async with credentials.get_client() as client:
        works, ends = await client.check(), await _if_told(client.login_ends())
        sees = await _what_is_seen(client)
    return Outcome(f"{works} {sees}", ends, in_use=await remember_use(name, credentials, ends, datetime.now(UTC)))


async def _what_is_seen(openrouter: OpenRouterClient) -> str:
    """Say which of the parts are seen that an account may lack."""
    seen = [part for part in Part if await if_available(part, openrouter.peek(part.path))]
    unseen = [part for part in Part if part not in seen]
    lacks = f" The account lacks, or hides from it, {_enumerated(unseen)}." if unseen else ""
    return f"It can read {_enumerated(seen)}.{lacks}"


def _enumerated(parts: Sequence[Part]) -> str:
    return ", ".join(parts) or "nothing else"


async def check_destination(name: str, field: str, loaded: Mapping[str, Block] = NOTHING) -> Outcome:
    """Prove that a destination works right now.

    Returns:
        What works, the place, and when the login ends.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    async with aclosing(await open_destination(name, field, loaded=loaded)) as destination:
        return Outcome(await destination.check(), await _if_told(destination.login_ends()), destination.place())


async def check_block(name: str, field: str, loaded: Mapping[str, Block] = NOTHING) -> Outcome:
    """Prove that a block works right now: a connection, a login, or a destination.

    Returns:
        What works, the place of a destination, and when the login ends.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    kind, _, block = name.partition("/")
    if kind == CONNECTION_TYPE:
        return await check_connection(block, field, loaded)
    login = await load_block(name, field, loaded)
    if not isinstance(login, VaultCredentials | InfisicalCredentials):
        return await check_destination(name, field, {name: login})
    async with aclosing(login):
        return Outcome(await login.check(), None)


async def _if_told(look_up: Awaitable[datetime | None]) -> datetime | None:
    try:
        return await look_up
    except KeyRotationError:
        # A login that may not look at itself works all the same.
        return None
