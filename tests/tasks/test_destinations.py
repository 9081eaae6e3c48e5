"""Destinations of every kind, behind the one interface that a run knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from prefect.blocks.abstract import SecretBlock
from prefect.blocks.system import Secret
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.vault import TokenAuth
from sandbox.server import running
from sandbox.vault import ROOT_TOKEN, VaultSandbox, create_app
from tasks.destinations import AnySecretBlock, Destination, OwnBlock, PrefectSecret


class ForeignSecret(SecretBlock):
    """A secret block of another package."""

    async def read_secret(self) -> bytes:
        """Read it."""
        return b"current"

    async def write_secret(self, secret_data: bytes) -> str:
        """Write it."""
        raise AssertionError("nothing is written")


@pytest.fixture
def vault_url() -> Iterator[str]:
    """Where the stand-in of Vault is."""
    with running(create_app(VaultSandbox())) as url:
        yield url


@pytest.fixture
async def in_vault(vault_url: str) -> AsyncIterator[OwnBlock]:
    """A destination in Vault with an older version."""
    credentials = VaultCredentials(url=vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    destination = OwnBlock("vault-secret/checkout", VaultSecret(credentials=credentials, path="app"))
    for value in ("old", "current"):
        await destination.write(SecretStr(value), await destination.read(), {})
    yield destination
    await destination.aclose()


async def test_what_vault_knows_is_passed_on(in_vault: OwnBlock) -> None:
    """A destination in Vault finds older versions and foresees whether it may write."""
    assert await in_vault.read_older(lambda value: value == SecretStr("old")) == SecretStr("old")
    assert "can be read and written" in await in_vault.check()


@pytest.mark.parametrize(
    "destination",
    [
        PrefectSecret("secret/checkout", Secret(value="current")),
        AnySecretBlock("foreign-secret/checkout", ForeignSecret()),
    ],
    ids=lambda destination: destination.name,
)
async def test_a_store_without_versions_finds_nothing_and_cannot_tell(destination: Destination) -> None:
    """Where a store has neither versions nor a way to ask, the answers are nothing and unknown."""
    assert await destination.read_older(lambda _value: True) is None
    assert await destination.check() == f"{destination.name} can be read."
