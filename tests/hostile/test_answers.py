"""Whatever a service returns, a call ends in time with a documented result, or one sentence without secrets."""

from __future__ import annotations

import inspect
import time
import typing
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blocks import InfisicalCredentials, InfisicalSecret, VaultCredentials, VaultSecret
from blocks.destination import Content
from blocks.errors import (
    ConflictError,
    ForbiddenError,
    KeyRotationError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
)
from blocks.openrouter.client import OpenRouterClient
from blocks.vault.auth import FOLDERS_SETTING
from sandbox import infisical, openrouter, vault
from sandbox.openrouter_account import OpenRouterSandbox, StoredKey
from sandbox.server import running
from sandbox.vault_engines import KvVersion2
from sandbox.vault_tokens import VaultSandbox
from tests.certificates import self_signed
from tests.hostile.calls import ABSENT, CALLS, CREDENTIAL, GUARDRAIL, LOGINS, Liars, outcome
from tests.hostile.judging import LONGEST_SECONDS, is_plain, leaks, shown
from tests.hostile.liar import ANSWERS, SECRET_ID, Liar, Service, listening

pytestmark = pytest.mark.slow

ATTEMPTS = 2
DEADLINES_SECONDS = (0.3, 3.0)
"""Deadlines for trickling responses; on a busy machine, the first may pass before the request is sent."""


def _apps() -> tuple[dict[Service, Liar], StoredKey, str]:
    o, v, i = OpenRouterSandbox(), VaultSandbox(), infisical.InfisicalSandbox()
    key = o.add_key(o.accounts[0], {"name": "checkout"})
    o.add_credential(o.accounts[0], None, id=CREDENTIAL, allowed_api_key_hashes=[key.hash])
    o.guardrails[GUARDRAIL] = {"id": GUARDRAIL, "workspace_id": o.accounts[0].workspaces[0]}
    engine = v.namespaces[""]["secret"]
    assert isinstance(engine, KvVersion2)
    for value in ("older", "old"):
        engine.write("app", {"value": value}, {})
    for login in LOGINS:
        v.allow_login(login, "role", SECRET_ID)
    i.put("PRESENT", "old")
    liars: dict[Service, Liar] = {
        "OpenRouter": Liar(openrouter.create_app(o), "OpenRouter"),
        "Vault": Liar(vault.create_app(v), "Vault"),
        "Infisical": Liar(infisical.create_app(i), "Infisical"),
    }
    return liars, key, o.accounts[0].workspaces[0]


def _running(home: Path, *, certfile: str | None = None, keyfile: str | None = None) -> Iterator[Liars]:
    liars, key, workspace = _apps()
    (home / "jwt").write_text(SECRET_ID)
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(running(liar, certfile=certfile, keyfile=keyfile)) for name, liar in liars.items()
        }
        yield Liars(liars, urls, key, workspace, str(home / "jwt"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Liars]:
    """The stand-ins that return wrong responses, shared by all tests of this module."""
    yield from _running(tmp_path_factory.mktemp("login"))


@pytest.fixture(scope="module")
def untrusted_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Liars]:
    """The same stand-ins with an untrusted certificate."""
    home: Path = tmp_path_factory.mktemp("certificate")
    certfile, keyfile = self_signed(home)
    yield from _running(home, certfile=certfile, keyfile=keyfile)


@pytest.fixture(autouse=True)
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the attempts to two, which cover a retry like the usual four."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", ATTEMPTS)


@pytest.fixture(autouse=True)
def token_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Permit the folder in which the tests store the service account's token."""
    monkeypatch.setenv(FOLDERS_SETTING, str(tmp_path_factory.getbasetemp()))


def usually(name: str) -> type[KeyRotationError]:
    """Return the error that most calls raise for a response."""
    answer = ANSWERS[name]
    if answer.manner in {"trickle", "dropped"}:
        return UnreachableError
    if name == "50 MB of error":
        return UnexpectedAnswerError
    known = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError}
    known |= dict.fromkeys((402, 422), RejectedError) | dict.fromkeys((412, 429), RateLimitedError)
    if answer.status in known:
        return known[answer.status]
    return UnexpectedAnswerError if answer.status < 400 else UnavailableError


def is_as_expected(result: Any, expected: Any) -> bool:
    """Return whether a call's result or error is the expected one."""
    if isinstance(expected, type):
        return type(result) is expected
    if expected == ABSENT:
        return isinstance(result, Content) and result.value is None
    return bool(result == expected)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", CALLS)
async def test_a_lie_ends_in_time_with_one_sentence_and_no_secret(
    servers: Liars, name: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call handles each wrong response as documented, reports it plainly, and reveals no secret."""
    call = CALLS[name]
    liar = servers.liars[call.service]
    liar.lies, liar.told = (call.method, call.path, ANSWERS[answer]), 0
    started = time.monotonic()

    with listening() as ear:
        for deadline in DEADLINES_SECONDS if ANSWERS[answer].manner == "trickle" else (None,):
            servers.deadline = deadline
            if deadline:
                monkeypatch.setattr("blocks.http.CALL_DEADLINE_SECONDS", deadline)
            result = await outcome(call, servers)
            if liar.told:
                break
    liar.lies = None

    assert liar.told > 0
    assert is_as_expected(result, call.otherwise.get(answer, usually(answer))), shown(result)
    assert not isinstance(result, BaseException) or is_plain(result)
    assert leaks(shown(result)) == []
    assert leaks(ear.text) == []
    assert time.monotonic() - started < LONGEST_SECONDS


@pytest.mark.parametrize(
    ("prefix", "client"),
    [
        ("", OpenRouterClient),
        ("Vault ", VaultSecret),
        ("Vault credentials ", VaultCredentials),
        ("Infisical ", InfisicalSecret),
        ("Infisical credentials ", InfisicalCredentials),
    ],
)
def test_no_call_of_a_client_is_left_out(prefix: str, client: type) -> None:
    """`CALLS` must contain every public method of a client that sends a request."""
    waits = {
        name
        for base in client.__mro__
        if base.__module__.startswith(client.__module__.rpartition(".")[0])
        for name, member in vars(base).items()
        if not name.startswith("_") and (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member))
    }
    lied_to = {name.partition(",")[0] for name in CALLS}

    assert {f"{prefix}{name}" for name in waits - {"aclose"}} <= lied_to


def test_no_login_at_vault_is_left_out(servers: Liars) -> None:
    """`CALLS` contains each login method that the block's form offers, except the token, which sends no request."""
    offered = set(typing.get_args(typing.get_type_hints(VaultCredentials)["auth"]))

    assert {type(login) for login in servers.logins().values()} == offered
    assert set(servers.logins()) - {"token"} == set(LOGINS)


@pytest.mark.parametrize("name", CALLS)
async def test_a_certificate_that_nobody_vouches_for_is_met_once(untrusted_servers: Liars, name: str) -> None:
    """An untrusted certificate fails a call without a retry, and the request cannot have taken effect."""
    call = CALLS[name]
    waits: list[float] = []

    async def remember(seconds: float) -> None:
        waits.append(seconds)

    with listening() as ear, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.hostile.calls.at_once", remember)
        result = await outcome(call, untrusted_servers)

    assert type(result) is UnreachableError
    assert "certificate is not trusted" in str(result)
    assert (waits, result.outcome_unknown) == ([], False)
    assert leaks(shown(result) + ear.text) == []
