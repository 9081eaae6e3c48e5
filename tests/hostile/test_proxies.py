"""The environment's proxy: who is reached through it, and who never is."""

from __future__ import annotations

import pytest

from blocks.errors import KeyRotationError
from sandbox.openrouter_account import OpenRouterSandbox
from tests.byte_server import speaking
from tests.hostile.calls import CALLS, Liars, outcome

FIRST_CALLS = ["create_key", "Vault credentials check", "Infisical credentials check"]
"""One call of each client."""


@pytest.fixture(autouse=True)
def fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt is enough, and the machine's own exceptions from its proxy do not count."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def at(url: str) -> Liars:
    """Return clients that all use the same address."""
    nobody = OpenRouterSandbox()
    key = nobody.add_key(nobody.accounts[0], {"name": "checkout"})
    return Liars({}, dict.fromkeys(("OpenRouter", "Vault", "Infisical"), url), key, "workspace")


@pytest.mark.parametrize("name", FIRST_CALLS)
async def test_a_service_on_loopback_is_never_reached_through_a_proxy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a proxy for all hosts, when an agent on loopback is called over http, then the proxy sees no secret."""
    at_proxy: list[str] = []
    at_agent: list[str] = []
    with speaking(lambda *_: at_proxy.append(name)) as proxy, speaking(lambda *_: at_agent.append(name)) as agent:
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy)

        failed = await outcome(CALLS[name], at(agent))

    assert isinstance(failed, KeyRotationError)
    assert not at_proxy
    assert at_agent


@pytest.mark.parametrize("name", FIRST_CALLS)
async def test_every_other_service_is_reached_through_the_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a proxy for https, when a host elsewhere is called, then the proxy is asked for a tunnel to it."""
    at_proxy: list[str] = []
    with speaking(lambda *_: at_proxy.append(name)) as proxy:
        for variable in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, proxy)

        failed = await outcome(CALLS[name], at("https://elsewhere.example"))

    assert isinstance(failed, KeyRotationError)
    assert at_proxy
