"""A secret in each of the Vaults, at a unique path."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.vault.auth import TokenAuth
from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.vaults import TestVault

KEY = SecretStr("sk-or-v1-the-new-key")
LABELS = {"key_rotation": "checkout", "written_at": "2026-12-01T03:30:00+00:00"}
paths = (f"apps/checkout-{number}" for number in itertools.count())


def block(vault: TestVault, auth: object = None, **fields: str) -> VaultSecret:
    """Return a secret at a unique path."""
    credentials = VaultCredentials(url=vault.url, auth=auth or TokenAuth(token=ROOT_TOKEN))
    return VaultSecret(credentials=credentials, path=fields.pop("path", None) or next(paths), **fields)


@pytest.fixture
async def secret(vault: TestVault) -> AsyncIterator[VaultSecret]:
    """A secret at a path where nothing is stored yet."""
    made = block(vault)
    yield made
    await made.aclose()
