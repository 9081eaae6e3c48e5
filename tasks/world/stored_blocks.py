"""Load stored blocks by type slug and name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from types import MappingProxyType

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockDocument
from prefect.client.utilities import get_or_create_client

from blocks.errors import ConfigurationError, MissingBlockError, ServiceError
from tasks.world.api import api_errors

NONE_LOADED: Mapping[str, Block] = MappingProxyType({})
LOADED_AT_ONCE = 100
"""How many blocks one request may load; the server returns at most 200."""


async def load_blocks(names: Collection[str]) -> dict[str, Block]:
    """Load several blocks with one request.

    Args:
        names: Each block's type slug and name, at most `LOADED_AT_ONCE`.

    Returns:
        The blocks by name, without those that `load_block` would refuse.

    Raises:
        ServiceError: Prefect's API failed.
    """
    types, documents = zip(*(name.split("/", 1) for name in names), strict=True)
    body = {
        "block_types": {"slug": {"any_": sorted(set(types))}},
        "block_documents": {"name": {"any_": sorted(set(documents))}, "is_anonymous": {"eq_": False}},
        "include_secrets": True,
    }
    client, _ = get_or_create_client()
    with api_errors("loading blocks"):
        answer = (await client.request("POST", "/block_documents/filter", json=body)).json()
        stored = BlockDocument.model_validate_list(answer)
    found = {f"{each.block_type.slug}/{each.name}": each for each in stored if each.block_type}
    loaded = {name: _as_block(found[name]) for name in names if name in found}
    return {name: block for name, block in loaded.items() if block is not None}


def _as_block(document: BlockDocument) -> Block | None:
    try:
        return Block._from_block_document(document)  # noqa: SLF001 - as `Block.aload` does; there is no public way
    except Exception:  # noqa: BLE001 - `load_block` reports what is wrong
        return None


async def load_in_parts(names: Sequence[str]) -> AsyncIterator[tuple[Sequence[str], dict[str, Block]]]:
    """Yield blocks as `load_blocks` returns them, `LOADED_AT_ONCE` at a time, each part with its names."""
    for first in range(0, len(names), LOADED_AT_ONCE):
        some = names[first : first + LOADED_AT_ONCE]
        yield some, await load_blocks(some)


async def load_block(name: str, field: str, loaded: Mapping[str, Block] = NONE_LOADED) -> Block:
    """Load a block by its type slug and name.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the error message.
        loaded: Blocks that `load_blocks` has just loaded.

    Returns:
        The block, freshly loaded.

    Raises:
        MissingBlockError: The block does not exist.
        ConfigurationError: The block cannot be loaded here.
        ServiceError: Prefect's API failed.
    """
    try:
        return loaded.get(name) or await Block.aload(name)
    except ValueError as error:
        # Prefect raises ValueError for "not found", and pydantic's ValidationError, a subclass, for a damaged block.
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
