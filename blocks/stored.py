"""The name under which Prefect stores a block."""

from __future__ import annotations

from prefect.blocks.core import Block


def stored_name(block: Block) -> str:
    """Return `<block type slug>/<name>` of a block that was loaded from Prefect; empty for any other."""
    # Prefect has no public accessors for these.
    named = block._block_document_name and not block._is_anonymous  # noqa: SLF001
    return f"{block.get_block_type_slug()}/{block._block_document_name}" if named else ""  # noqa: SLF001
