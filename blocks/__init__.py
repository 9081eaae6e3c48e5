"""Prefect blocks that hold the management credentials and name the destinations of API keys."""

from prefect.blocks.core import Block

from blocks.openrouter import OpenRouterCredentials

BLOCKS: tuple[type[Block], ...] = (OpenRouterCredentials,)
"""Every block type of this project, as it is registered with a server."""

__all__ = ["BLOCKS", "OpenRouterCredentials"]
