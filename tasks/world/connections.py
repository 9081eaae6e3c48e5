"""Open a connection, which holds an OpenRouter management key."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.blocks.core import Block

from blocks.errors import ConfigurationError
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.credentials import OpenRouterCredentials
from tasks.world.stored_blocks import NONE_LOADED, load_block

BLOCK_TYPE = OpenRouterCredentials.get_block_type_slug()


def block_of(connection: str) -> str:
    """Return the block of a connection: its type slug and name."""
    return f"{BLOCK_TYPE}/{connection}"


def connection_of(block: str) -> str | None:
    """Return the connection that a block holds, from its type slug and name; `None` for a block of another type."""
    kind, _, name = block.partition("/")
    return name if kind == BLOCK_TYPE else None


async def open_connection(name: str, loaded: Mapping[str, Block] = NONE_LOADED) -> OpenRouterClient:
    """Open a connection by name.

    Args:
        name: The name of the `openrouter-credentials` block.
        loaded: Blocks that are loaded already.

    Returns:
        The client, which the caller closes.

    Raises:
        ConfigurationError: The block does not exist, or cannot be loaded here.
        ServiceError: Prefect's API failed.
    """
    return (await load_connection(name, "rotation.connection", loaded)).get_client()


async def load_connection(name: str, field: str, loaded: Mapping[str, Block] = NONE_LOADED) -> OpenRouterCredentials:
    """Load a connection's block by name, as `open_connection` does; an error names `field`."""
    block = await load_block(block_of(name), field, loaded)
    if not isinstance(block, OpenRouterCredentials):
        raise ConfigurationError(f"{field}: {name} is not an OpenRouter connection. Nothing was created.")
    return block
