"""Checking one block, for example after it was saved, against a real Prefect server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.artifacts import Artifact
from prefect.variables import Variable

import blocks
from blocks.vault.auth import TokenAuth
from flows import check_connections
from sandbox.server import Fault
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.world.management_keys import PREFIX
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module


async def test_a_block_that_no_rotation_uses_can_be_tried(services: Services) -> None:
    """A connection, a login and a destination each report that they work; the daily check's artifact is unchanged."""
    await services.connect(services.openrouter_url)
    login = blocks.VaultCredentials(url=services.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    await login.asave("just-saved", overwrite=True)
    await blocks.VaultSecret(credentials=login, path="apps/just-saved").asave("just-saved", overwrite=True)
    before = await Artifact.aget("connections")
    names = [f"openrouter-credentials/{services.connection}", "vault-credentials/just-saved", "vault-secret/just-saved"]

    states = [await check_connections(block=name, return_state=True) for name in names]

    assert [state.is_completed() for state in states] == [True, True, True], states
    assert [str(state.message).startswith(f"{name} works: ") for state, name in zip(states, names, strict=True)] == [
        True
    ] * 3
    assert await Artifact.aget("connections") == before


async def test_a_connection_says_that_its_management_key_is_old(services: Services) -> None:
    """Given a management key in use for longer than its block allows, checking it alone asks to exchange it, too."""
    await services.connect(services.openrouter_url)
    name = f"openrouter-credentials/{services.connection}"
    first = await check_connections(block=name, return_state=True)
    stored: Any = await Variable.aget(f"{PREFIX}{services.connection}")
    since = datetime.now(UTC) - timedelta(days=100)
    await Variable.aset(f"{PREFIX}{services.connection}", {**stored, "since": since.isoformat()}, overwrite=True)

    state = await check_connections(block=name, return_state=True)

    assert "Exchange it" not in str(first.message)
    assert state.is_completed()
    assert "has been in use for 100 days, of at most 90. Exchange it" in str(state.message)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vault-secret/just-saved", "Vault at"),
        ("vault-secret/unknown", "block: "),
        ("no block", "block: must be <block type slug>/<block name>"),
    ],
)
async def test_a_block_that_does_not_work_says_why(services: Services, name: str, sentence: str) -> None:
    """The message is one sentence about this block alone."""
    login = blocks.VaultCredentials(url=services.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    await blocks.VaultSecret(credentials=login, path="apps/just-saved").asave("just-saved", overwrite=True)
    services.vault_app.state.faults.add(Fault(status=403, body='{"errors":["permission denied"]}'))

    state = await check_connections(block=name, return_state=True)

    assert state.is_failed()
    assert sentence in str(state.message)
