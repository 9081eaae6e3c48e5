"""A secret in the Infisical stand-in, whose state is reset for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from blocks import InfisicalCredentials, InfisicalSecret
from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, PROJECT_ID, InfisicalSandbox, create_app
from sandbox.server import running

KEY = SecretStr("sk-or-v1-the-new-key")
LOGIN = ("POST", "/api/v1/auth/universal-auth/login")
SECRET_PATH = "/api/v3/secrets/raw/OPENROUTER_API_KEY"


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries belong to `blocks.http` and are tested there; here nothing waits."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, Starlette]]:
    """The stand-in."""
    app = create_app(InfisicalSandbox())
    with running(app) as url:
        yield url, app


@pytest.fixture
def sandbox(server: tuple[str, Starlette]) -> InfisicalSandbox:
    """The stand-in's state, reset."""
    app = server[1]
    fresh = InfisicalSandbox()
    app.state.sandbox.__dict__.update(fresh.__dict__)
    app.state.requests.clear()
    app.state.faults.clear()
    state: InfisicalSandbox = app.state.sandbox
    return state


def block(url: str, secret: str = CLIENT_SECRET, **fields: str) -> InfisicalSecret:
    """Return a secret in the production environment."""
    where = {"project_id": PROJECT_ID, "environment": "prod", "name": "OPENROUTER_API_KEY", **fields}
    return InfisicalSecret(
        credentials=InfisicalCredentials(host=url, client_id=CLIENT_ID, client_secret=secret), **where
    )


@pytest.fixture
async def secret(server: tuple[str, Starlette], sandbox: InfisicalSandbox) -> AsyncIterator[InfisicalSecret]:
    """A secret that does not exist yet."""
    made = block(server[0])
    yield made
    await made.aclose()
