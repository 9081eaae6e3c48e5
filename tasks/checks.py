"""Whether a connection or a destination works right now, without changing anything."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import ConfigurationError
from blocks.openrouter import OpenRouterCredentials
from blocks.vault import VaultSecret
from tasks.destinations import CONNECTION_TYPE, load_block, open_destination


async def check_connection(name: str, field: str) -> str:
    """Prove that a connection works right now.

    Args:
        name: The name of the `openrouter-credentials` block.
        field: The field that names it, for the message.

    Returns:
        One sentence that says what works.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    block = await load_block(f"{CONNECTION_TYPE}/{name}", field)
    if not isinstance(block, OpenRouterCredentials):
        raise ConfigurationError(f"{field}: {name} is not an OpenRouter connection. Nothing was created.")
    return await block.check()


async def check_destination(name: str, field: str) -> str:
    """Prove that a destination works right now.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the message.

    Returns:
        One sentence that says what works.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    destination = await open_destination(name, field)
    try:
        return await destination.check()
    finally:
        await destination.aclose()


async def login_ends(name: str, field: str) -> datetime | None:
    """Say when the login behind a destination ends.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the message.

    Returns:
        The moment, UTC; `None` where it does not end, is made anew by each run, or cannot be known.

    Raises:
        KeyRotationError: One sentence that says what is wrong.
    """
    block = await load_block(name, field)
    if not isinstance(block, VaultSecret):
        return None
    try:
        return await block.credentials.token_ends()
    finally:
        await block.aclose()
