"""How a destination handles a Vault that misbehaves: faults, lost answers and hostile answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

import pytest
from pydantic import SecretStr

from blocks import VaultSecret
from blocks.errors import (
    ConflictError,
    RateLimitedError,
    ServiceError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    error_for_status,
)
from blocks.http import MAX_ANSWER_BYTES, MAX_ATTEMPTS
from blocks.threads import THREAD_NAME
from blocks.vault.auth import AppRoleAuth
from sandbox.server import Fault
from sandbox.vault_engines import KvVersion2
from tests.blocks.vault.faults.conftest import DATA, KEY, LABELS, StandIn
from tests.byte_server import speaking
from tests.threads import Hanging, ends_while


async def test_a_rotation_costs_four_calls(stand_in: StandIn, secret: VaultSecret) -> None:
    """Read, write, label and read back take one call each; a token needs no login."""
    await secret.write_content(KEY, await secret.read_content(), LABELS)
    await secret.read_content()

    metadata = "/v1/secret/metadata/app"
    assert stand_in.requests == [("GET", DATA), ("POST", DATA), ("PATCH", metadata), ("GET", DATA)]


async def test_a_search_reads_what_there_is_and_no_more(stand_in: StandIn, secret: VaultSecret) -> None:
    """A search for an older version costs one call, and one for each version up to the wanted one."""
    for value in ("wanted", "newer", "destroyed", "current"):
        await secret.write_content(SecretStr(value), await secret.read_content(), {})
    engine = stand_in.sandbox.namespaces[""]["secret"]
    assert isinstance(engine, KvVersion2)
    engine.records["app"].versions[4].destroyed = True
    stand_in.requests.clear()

    assert await secret.read_older(lambda value: value == SecretStr("wanted")) == SecretStr("wanted")

    assert stand_in.requests == [("GET", "/v1/secret/metadata/app"), ("GET", DATA), ("GET", DATA)]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_read_is_repeated(stand_in: StandIn, secret: VaultSecret, status: int) -> None:
    """A read that failed temporarily is repeated."""
    stand_in.faults.add(Fault(method="GET", status=status, times=MAX_ATTEMPTS - 1))

    held = await secret.read_content()

    assert held.value == SecretStr("old")


@pytest.mark.parametrize("status", [400, 401, 404, 405, 409, 412, 418, 429, 500, 502, 503, 504])
async def test_every_status_has_its_error(stand_in: StandIn, secret: VaultSecret, status: int) -> None:
    """The status determines the error's class; its text names the call and quotes no answer."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(method="POST", status=status, body='{"errors": ["hvs.secret-text"]}'))

    with pytest.raises(error_for_status(status)) as failed:
        await secret.write_content(KEY, held, {})

    assert "hvs." not in str(failed.value)
    assert KEY.get_secret_value() not in str(failed.value)
    assert failed.value.__cause__ is None


async def test_a_service_that_asks_for_a_long_wait_is_reported(stand_in: StandIn, secret: VaultSecret) -> None:
    """The error contains Retry-After, and a long wait is left to the caller."""
    stand_in.faults.add(Fault(status=429, headers={"Retry-After": "600"}))

    with pytest.raises(RateLimitedError) as failed:
        await secret.read_content()

    assert failed.value.retry_after == 600
    assert len(stand_in.requests) == 1


async def test_a_write_that_was_refused_for_the_moment_is_left_to_who_calls(
    stand_in: StandIn, secret: VaultSecret
) -> None:
    """After a 429 nothing was written, but a rotation must check its ledger before it repeats the write."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(method="POST", status=429, times=1))

    with pytest.raises(ServiceError) as refused:
        await secret.write_content(KEY, held, {})

    assert refused.value.retryable
    assert [method for method, _ in stand_in.requests].count("POST") == 1


async def test_a_secret_written_by_a_person_is_tried_again(stand_in: StandIn, secret: VaultSecret) -> None:
    """Outside of a rotation there is no ledger to check, so a temporarily refused write is repeated."""
    stand_in.faults.add(Fault(method="POST", status=429, times=1))

    await secret.awrite_secret(KEY.get_secret_value().encode())

    assert stand_in.stored() == {"value": KEY.get_secret_value()}


@pytest.mark.parametrize("status", [None, 500, 502])
async def test_a_write_whose_answer_is_lost_is_not_repeated(
    stand_in: StandIn, secret: VaultSecret, status: int | None
) -> None:
    """The caller learns that the outcome is unknown, and finds by reading that the write took effect."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(when="after", method="POST", path=DATA, status=status))

    with pytest.raises(ServiceError) as failed:
        await secret.write_content(KEY, held, {})

    assert failed.value.outcome_unknown is True
    assert [method for method, _ in stand_in.requests].count("POST") == 1
    assert stand_in.stored() == {"value": KEY.get_secret_value()}


@pytest.mark.parametrize("status", [403, 405, 500, None])
async def test_labels_never_fail_a_write(
    stand_in: StandIn, secret: VaultSecret, caplog: pytest.LogCaptureFixture, status: int | None
) -> None:
    """The secret is stored, so the write succeeds, with a warning that its labels are missing."""
    stand_in.faults.add(Fault(path="/metadata/", status=status))

    with caplog.at_level(logging.WARNING):
        await secret.write_content(KEY, await secret.read_content(), LABELS)

    assert stand_in.stored() == {"value": KEY.get_secret_value()}
    assert "its labels were not" in caplog.text
    assert KEY.get_secret_value() not in caplog.text


async def test_a_sealed_vault_is_not_asked_again(stand_in: StandIn, secret: VaultSecret) -> None:
    """Only a person can unseal it, so the error is raised at once."""
    stand_in.sandbox.sealed = True

    with pytest.raises(UnavailableError, match="is sealed"):
        await secret.read_content()

    assert len(stand_in.requests) == 1


async def test_a_redirect_is_not_followed(stand_in: StandIn, secret: VaultSecret) -> None:
    """A token must not be sent to the target of a redirect."""
    stand_in.faults.add(Fault(status=307, headers={"Location": f"{stand_in.url}/v1/sys/health"}))

    with pytest.raises(UnexpectedAnswerError, match="redirect"):
        await secret.read_content()

    assert stand_in.requests == [("GET", DATA)]


@pytest.mark.parametrize("body", ["<html>", "[1]", "null", '"text"', "[" * 100_000, '{"data": {"data": 1}}', "{}"])
async def test_an_answer_that_is_not_documented_is_named(stand_in: StandIn, secret: VaultSecret, body: str) -> None:
    """If something else answers in place of Vault, the write does not count as done."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(status=200, body=body))

    with pytest.raises(UnexpectedAnswerError):
        await secret.write_content(KEY, held, {})


@pytest.mark.parametrize("status", [200, 307, 500])
async def test_an_answer_without_end_is_not_read(stand_in: StandIn, secret: VaultSecret, status: int) -> None:
    """An answer above the size limit is refused, whatever its status."""
    headers = {"Location": f"{stand_in.url}/"}
    stand_in.faults.add(Fault(status=status, headers=headers, body="x" * (MAX_ANSWER_BYTES + 1)))

    with pytest.raises(UnexpectedAnswerError, match="sent more than"):
        await secret.read_content()


def trickling(connection: socket.socket, over: threading.Event) -> None:
    """Promise a long answer, and send one byte from time to time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not over.wait(0.05):
        connection.sendall(b" ")


async def test_an_answer_that_trickles_is_given_up(stand_in: StandIn) -> None:
    """Each byte arrives in time, yet the call and its thread end at the deadline, instead of after hours."""
    with speaking(trickling) as url:
        secret = stand_in.secret(url=url, connect_timeout_seconds=0.1, read_timeout_seconds=0.2)

        with pytest.raises(UnreachableError, match="no answer in time"):
            await secret.write_content(KEY, await secret.read_content(), {})

        await secret.aclose()


def test_a_name_that_is_looked_up_without_end_does_not_keep_its_run(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name resolution has no timeout, so the call is abandoned, and its thread is not joined."""
    secret = stand_in.secret(connect_timeout_seconds=0.1, read_timeout_seconds=0.1)

    async def read() -> None:
        with pytest.raises(UnreachableError, match="no answer in time"):
            await secret.read_content()

    with Hanging() as hanging:
        monkeypatch.setattr("urllib3.util.connection.socket.getaddrinfo", hanging)
        assert ends_while(hanging, read)


async def test_no_answer_within_the_timeout_is_named(stand_in: StandIn) -> None:
    """The error says that the call timed out, and that it may have taken effect."""
    stand_in.faults.add(Fault(delay=1.0, status=0))
    secret = stand_in.secret(read_timeout_seconds=0.1)

    with pytest.raises(UnreachableError, match="no answer in time") as failed:
        await secret.read_content()

    assert failed.value.outcome_unknown is True
    await secret.aclose()


async def test_an_attempt_that_was_given_up_does_not_write_later(stand_in: StandIn) -> None:
    """If the login takes all the time, the write is not sent any more."""
    stand_in.sandbox.allow_login("approle", "r", "s")
    secret = stand_in.secret(AppRoleAuth(role_id="r", secret_id="s"), connect_timeout_seconds=0.1)
    held = await stand_in.secret().read_content()
    secret.credentials.connection()._deadline_seconds = 0.2
    stand_in.faults.add(Fault(when="before", path="login", delay=0.4, status=0))

    with pytest.raises(UnreachableError):
        await secret.write_content(KEY, held, {})

    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join()
    assert ("POST", DATA) not in stand_in.requests


async def test_a_connection_is_used_again(secret: VaultSecret, caplog: pytest.LogCaptureFixture) -> None:
    """The calls of a run share the connection that the first of them opened."""
    await secret.aclose()

    with caplog.at_level(logging.DEBUG, "urllib3.connectionpool"):
        await secret.write_content(KEY, await secret.read_content(), LABELS)

    assert caplog.text.count("Starting new HTTP connection") == 1


async def test_two_writers_at_once_cannot_both_win(stand_in: StandIn, secret: VaultSecret) -> None:
    """Of two writes prepared from the same version, exactly one succeeds."""
    held = await secret.read_content()
    writes = [secret.write_content(SecretStr(value), held, {}) for value in ("one", "two")]

    outcomes = await asyncio.gather(*writes, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if outcome] == [ConflictError]
