"""Answers that no web framework would send: endless headers, and broken ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from blocks.errors import KeyRotationError, UnexpectedAnswerError, UnreachableError
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.keys import KeyRequest
from sandbox import openrouter
from sandbox.openrouter_account import OpenRouterSandbox
from sandbox.server import running
from tests.byte_server import speaking
from tests.hostile.calls import CALLS, Liars, outcome
from tests.hostile.judging import leaks, shown
from tests.hostile.liar import KEY, LEAK, Answer, Liar, listening

FIRST_CALLS = ["create_key", "Vault credentials check", "Infisical credentials check"]
"""One call of each client whose first request gets the malformed response."""


def trickling_headers(connection: socket.socket, over: threading.Event) -> None:
    """Send headers slowly, for longer than the deadline."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(100):
        connection.sendall(f"X-{number}: a\r\n".encode())
        if over.wait(0.03):
            return


def broken_headers(connection: socket.socket, _over: threading.Event) -> None:
    """Send a broken header full of secrets."""
    connection.sendall(f"HTTP/1.1 200 OK\r\n{LEAK}\r\nContent-Length: 2\r\n\r\n{{}}".encode())


def broken_status(connection: socket.socket, _over: threading.Event) -> None:
    """Send text that is not HTTP, full of secrets."""
    connection.sendall(f"{LEAK}\r\n\r\n".encode())


def at(url: str) -> Liars:
    """Return clients that all use the same address."""
    nobody = OpenRouterSandbox()
    key = nobody.add_key(nobody.accounts[0], {"name": "checkout"})
    return Liars({}, dict.fromkeys(("OpenRouter", "Vault", "Infisical"), url), key, "workspace", deadline=0.3)


@pytest.mark.parametrize("name", FIRST_CALLS)
async def test_headers_without_end_are_given_up_at_the_deadline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call ends at its deadline although bytes keep arriving."""
    monkeypatch.setattr("blocks.http.CALL_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)

    with speaking(trickling_headers) as url:
        result = await outcome(CALLS[name], at(url))

    assert type(result) is UnreachableError
    assert "no answer in time" in str(result)


@pytest.mark.parametrize("speak", [broken_headers, broken_status])
@pytest.mark.parametrize("name", FIRST_CALLS)
async def test_what_is_not_http_is_neither_shown_nor_logged(
    name: str, speak: Callable[[socket.socket, threading.Event], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that violates the protocol leads to an error of this project, and no library logs its content."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)

    with listening() as ear, speaking(speak) as url:
        result = await outcome(CALLS[name], at(url))

    assert isinstance(result, KeyRotationError)
    assert leaks(shown(result) + ear.text) == []


def _created(**lies: str) -> Answer:
    data = {
        "hash": "f01d",
        "name": "checkout",
        "label": "sk-or-v1-the...ey",
        "disabled": False,
        "limit": None,
        "limit_reset": None,
        "include_byok_in_limit": False,
        "usage": 0,
        "created_at": "2026-12-01T03:30:00Z",
        **lies,
    }
    return Answer(201, json.dumps({"data": data, "key": KEY}))


async def test_a_key_shown_where_a_hash_belongs_is_not_kept() -> None:
    """The ledger would store such a hash, so the create fails, with an unknown outcome."""
    liar = Liar(openrouter.create_app(OpenRouterSandbox()), "OpenRouter")
    liar.lies = ("POST", "/keys$", _created(hash=KEY))

    with running(liar) as url:
        async with OpenRouterClient(SecretStr("management"), f"{url}/api/v1") as client:
            with pytest.raises(UnexpectedAnswerError, match="hash") as failed:
                await client.create_key(KeyRequest(name="checkout"))

    assert leaks(shown(failed.value)) == []
    assert failed.value.outcome_unknown


async def test_a_key_shown_where_a_label_belongs_is_blacked_out() -> None:
    """The label is stored in the ledger and shown to people, so the secret in it must be redacted."""
    liar = Liar(openrouter.create_app(OpenRouterSandbox()), "OpenRouter")
    liar.lies = ("POST", "/keys$", _created(label=KEY))

    with running(liar) as url:
        async with OpenRouterClient(SecretStr("management"), f"{url}/api/v1") as client:
            created = await client.create_key(KeyRequest(name="checkout"))

    assert leaks(created.key.label) == []
