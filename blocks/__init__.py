"""Prefect blocks for the management credentials and the destinations of keys; imports neither `tasks` nor `flows`."""

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
"""The block types to register with a Prefect server."""

__all__ = [
    "BLOCKS",
    "InfisicalCredentials",
    "InfisicalSecret",
    "OpenRouterCredentials",
    "VaultCredentials",
    "VaultSecret",
]
