"""The secret blocks outside of any rotation: read and written from synchronous and asynchronous code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blocks import InfisicalCredentials, InfisicalSecret, VaultCredentials, VaultSecret
from blocks.destination import DestinationBlock
from blocks.errors import NotFoundError
from blocks.vault.auth import AppRoleAuth
from sandbox import infisical, vault
from sandbox.server import running
from sandbox.vault_tokens import VaultSandbox


def in_vault(url: str, sandbox: VaultSandbox) -> VaultSecret:
    """Return a secret in Vault that does not exist yet."""
    sandbox.allow_login("approle", "a-role", "its-secret", {"secret/data/app": {"read", "create", "update"}})
    login = AppRoleAuth(role_id="a-role", secret_id="its-secret")
    return VaultSecret(credentials=VaultCredentials(url=url, auth=login), path="app")


def in_infisical(url: str) -> InfisicalSecret:
    """Return a secret in Infisical that does not exist yet."""
    credentials = InfisicalCredentials(host=url, client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET)
    return InfisicalSecret(credentials=credentials, project_id=infisical.PROJECT_ID, environment="prod", name="KEY")


@pytest.fixture(params=["vault", "infisical"])
def secret(request: pytest.FixtureRequest) -> Iterator[DestinationBlock]:
    """A secret that does not exist yet, in each store."""
    if request.param == "vault":
        sandbox = VaultSandbox()
        with running(vault.create_app(sandbox)) as url:
            yield in_vault(url, sandbox)
    else:
        with running(infisical.create_app()) as url:
            yield in_infisical(url)


def test_sync_code_reads_what_sync_code_wrote(secret: DestinationBlock) -> None:
    """Without an event loop nothing is awaited."""
    secret.write_secret(b"one")

    assert secret.read_secret() == b"one"


async def test_async_code_reads_what_async_code_wrote(secret: Any) -> None:
    """With a running event loop, the same methods are awaited; the explicitly async ones always are."""
    await secret.write_secret(b"one")
    await secret.awrite_secret(b"two")

    assert [await secret.read_secret(), await secret.aread_secret()] == [b"two", b"two"]


def test_sync_code_is_told_that_there_is_nothing(secret: DestinationBlock) -> None:
    """Synchronous code gets the same error as asynchronous code."""
    with pytest.raises(NotFoundError, match="holds no secret yet"):
        secret.read_secret()


def test_one_block_serves_several_event_loops_and_threads(secret: DestinationBlock) -> None:
    """A block that is passed to tasks is used from several unrelated loops and threads."""
    asyncio.run(secret.awrite_secret(b"one"))

    with ThreadPoolExecutor(4) as threads:
        read = [*threads.map(lambda _: secret.read_secret(), range(8)), asyncio.run(secret.aread_secret())]

    assert read == [b"one"] * 9


async def test_sync_code_may_be_called_from_async_code(secret: Any) -> None:
    """A synchronous helper with `_sync=True` gets the value itself, although a loop is running."""
    await secret.awrite_secret(b"one")

    assert await asyncio.to_thread(secret.read_secret) == b"one"
    assert secret.read_secret(_sync=True) == b"one"


async def test_reading_leaves_the_session_of_others_alone(secret: DestinationBlock) -> None:
    """A rotation's open session survives a read of the same block."""
    held = await secret.read_content()

    await secret.awrite_secret(b"one")

    assert (held.value, (await secret.read_content()).value is None) == (None, False)
    await secret.aclose()
