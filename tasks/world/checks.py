"""Check whether a connection or a destination works and when its login expires, without changing anything.

The arguments of each check are those of `load_block`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple

from prefect.blocks.core import Block

from blocks.destination import DestinationBlock
from blocks.errors import KeyRotationError
from blocks.login import LoginBlock
from tasks.model.management_keys import InUse
from tasks.world.connections import connection_of, load_connection
from tasks.world.destinations import open_destination
from tasks.world.management_keys import seen_in_use
from tasks.world.optional import what_is_seen
from tasks.world.stored_blocks import NONE_LOADED, load_block, load_in_parts


class BlockCheck(NamedTuple):
    """The outcome of checking a block that works.

    Args:
        sentence: What works.
        ends: When its login expires, UTC; `None` if never, or if unknown.
        place: The place to which a destination points; several blocks can point to the same one.
        in_use: A connection's use of its management key, as this check alone knows it.
    """

    sentence: str
    ends: datetime | None
    place: str | None = None
    in_use: InUse | None = None


async def check_connection(name: str, field: str, loaded: Mapping[str, Block] = NONE_LOADED) -> BlockCheck:
    """Verify that a connection, named without its block type, works.

    Returns:
        What works, and when the management key expires.

    Raises:
        KeyRotationError: It does not work; the message says why.
    """
    credentials = await load_connection(name, field, loaded)
    async with credentials.get_client() as client:
        works, ends = await client.check(), await _if_permitted(client.login_ends())
        sees = await what_is_seen(client)
    return BlockCheck(f"{works} {sees}", ends, in_use=seen_in_use(name, credentials, ends, datetime.now(UTC)))


async def check_destination(name: str, field: str, loaded: Mapping[str, Block] = NONE_LOADED) -> BlockCheck:
    """Verify that a destination works.

    Returns:
        What works, where it points, and when its login expires.

    Raises:
        KeyRotationError: It does not work; the message says why.
    """
    async with aclosing(await open_destination(name, field, loaded=loaded)) as destination:
        return BlockCheck(await destination.check(), await _if_permitted(destination.login_ends()), destination.place())


async def places_of(names: Sequence[str]) -> dict[str, str]:
    """Return where destinations point, without asking their stores.

    Args:
        names: The destinations.

    Returns:
        The place of each one; those that cannot be loaded are left out, and those whose place is the block itself.

    Raises:
        ServiceError: Prefect's API failed.
    """
    return {
        name: block.place()
        async for _, loaded in load_in_parts(names)
        for name, block in loaded.items()
        if isinstance(block, DestinationBlock)
    }


async def check_block(name: str, field: str, loaded: Mapping[str, Block] = NONE_LOADED) -> BlockCheck:
    """Verify that a block works: a connection, a login, or a destination.

    Returns:
        What works, where a destination points, and when the login expires.

    Raises:
        KeyRotationError: It does not work; the message says why.
    """
    if connection := connection_of(name):
        return await check_connection(connection, field, loaded)
    block = await load_block(name, field, loaded)
    if not isinstance(block, LoginBlock):
        return await check_destination(name, field, {name: block})
    async with aclosing(block):
        return BlockCheck(await block.check(), await _if_permitted(block.login_ends()))


async def _if_permitted(look_up: Awaitable[datetime | None]) -> datetime | None:
    try:
        return await look_up
    except KeyRotationError:
        # A login without permission to look itself up still works.
        return None
