"""A Vault stand-in with faults that a test switches on, and a secret in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.vault.auth import TokenAuth
from sandbox.server import Faults, running
from sandbox.vault import create_app
from sandbox.vault_engines import KvVersion2
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tests.blocks.vault.vaults import at_once

KEY = SecretStr("sk-or-v1-the-new-key")
LABELS = {"key_rotation": "checkout"}
DATA = "/v1/secret/data/app"


class StandIn:
    """A stand-in with faults, a request log and a clock."""

    def __init__(self) -> None:
        self.time = datetime(2026, 12, 1, tzinfo=UTC)
        self.sandbox = VaultSandbox(now=lambda: self.time)
        self.app = create_app(self.sandbox)
        self.url = ""

    @property
    def faults(self) -> Faults:
        """The active faults."""
        faults: Faults = self.app.state.faults
        return faults

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of every request so far."""
        requests: list[tuple[str, str]] = self.app.state.requests
        return requests

    def stored(self) -> dict[str, str]:
        """The current fields at the path."""
        engine = self.sandbox.namespaces[""]["secret"]
        assert isinstance(engine, KvVersion2)
        data: dict[str, str] = engine.read("app")["data"]
        return data

    def secret(self, auth: object = None, **credentials: object) -> VaultSecret:
        """Return the secret `app`, whose retries do not wait."""
        made = VaultCredentials(
            url=credentials.pop("url", self.url), auth=auth or TokenAuth(token=ROOT_TOKEN), **credentials
        )
        made._sleep = at_once
        return VaultSecret(credentials=made, path="app")


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A separate stand-in for each test."""
    made = StandIn()
    with running(made.app) as made.url:
        yield made


@pytest.fixture
async def secret(stand_in: StandIn) -> AsyncIterator[VaultSecret]:
    """A secret with the value `old`; the request log starts after it was stored."""
    made = stand_in.secret()
    await made.write_content(SecretStr("old"), await made.read_content(), {})
    stand_in.requests.clear()
    yield made
    await made.aclose()
