"""Prefect blocks that hold the management credentials and name the destinations of API keys."""

from prefect.blocks.core import Block

from blocks.infisical.credentials import InfisicalCredentials
from blocks.infisical.secret import InfisicalSecret
from blocks.openrouter.credentials import OpenRouterCredentials
from blocks.vault.credentials import VaultCredentials
from blocks.vault.secret import VaultSecret

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
