"""Whether a connection or a destination works right now, and when its login ends, without changing anything."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import NamedTuple

from blocks.errors import ConfigurationError, KeyRotationError
from blocks.openrouter import OpenRouterClient, OpenRouterCredentials
from blocks.vault import VaultSecret
from tasks.destinations import CONNECTION_TYPE, as_destination, load_block


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
    block = await load_block(f"{CONNECTION_TYPE}/{name}", field)
    if not isinstance(block, OpenRouterCredentials):
        raise ConfigurationError(f"{field}: {name} is not an OpenRouter connection. Nothing was created.")
    async with block.get_client(connection=name) as client:
        return Outcome(await client.check(), await _if_told(_management_key_ends(client)))


async def check_destination(name: str, field: str) -> Outcome:
    """Prove that a destination works right now.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the message.

    Returns:
        What works, the place, and when the Vault token ends that somebody made; every other login is made anew by each
        run.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    block = await load_block(name, field)
    destination = as_destination(name, block, field)
    try:
        sentence = await destination.check()
        ends = await _if_told(block.credentials.token_ends()) if isinstance(block, VaultSecret) else None
    finally:
        await destination.aclose()
    return Outcome(sentence, ends, destination.place())


async def _management_key_ends(client: OpenRouterClient) -> datetime | None:
    return (await client.about_itself()).expires_at


async def _if_told(look_up: Awaitable[datetime | None]) -> datetime | None:
    try:
        return await look_up
    except KeyRotationError:
        # A login that may not look at itself works all the same.
        return None
