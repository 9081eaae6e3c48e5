"""Blocks as Prefect stores them, loaded by type slug and name."""

from __future__ import annotations

from prefect.blocks.core import Block

from blocks.errors import ConfigurationError, MissingBlockError, ServiceError


async def load_block(name: str, field: str) -> Block:
    """Load a block by its type slug and name.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the message.

    Returns:
        The block, freshly loaded.

    Raises:
        MissingBlockError: There is no such block.
        ConfigurationError: It cannot be loaded here.
        ServiceError: Prefect's API failed.
    """
    try:
        return await Block.aload(name)
    except ValueError as error:
        # Prefect raises ValueError for "not found", and pydantic's ValidationError, which is one, for a damaged block.
        if "Unable to find" in str(error):
            raise MissingBlockError(
                f"{field}: the block {name} does not exist; make it, or name another one. Nothing was created."
            ) from None
        raise ConfigurationError(
            f"{field}: the block {name} is not valid: open it in the dashboard. Nothing was created."
        ) from None
    except Exception as error:  # noqa: BLE001 - its text may quote the block
        kind = type(error).__name__
        if kind == "UnknownBlockType":
            raise ConfigurationError(
                f"{field}: the package that provides the block type of {name} is not installed here."
            ) from None
        raise ServiceError(f"Prefect could not load the block {name} ({kind}).", retryable=True) from None
