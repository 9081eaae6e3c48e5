"""Prefect blocks that hold the management credentials and name the destinations of API keys."""

from prefect.blocks.core import Block

from blocks.infisical import InfisicalCredentials, InfisicalSecret
from blocks.openrouter import OpenRouterCredentials
from blocks.vault import VaultCredentials, VaultSecret

BLOCKS: tuple[type[Block], ...] = (
    OpenRouterCredentials,
    VaultCredentials,
    VaultSecret,
    InfisicalCredentials,
    InfisicalSecret,
)
"""Every block type of this project, as it is registered with a server."""

__all__ = [
    "BLOCKS",
    "InfisicalCredentials",
    "InfisicalSecret",
    "OpenRouterCredentials",
    "VaultCredentials",
    "VaultSecret",
]
