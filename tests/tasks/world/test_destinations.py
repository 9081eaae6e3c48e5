"""Destinations of every kind, behind the one interface that a run uses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from prefect.blocks.abstract import SecretBlock
from prefect.blocks.system import Secret
from pydantic import PrivateAttr, SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.destination import Content, Destination
from blocks.errors import DestinationError, ServiceError
from blocks.vault.auth import TokenAuth
from sandbox.server import running
from sandbox.vault import create_app
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tasks.model.tries import passes_by_itself
from tasks.world.destinations import AnySecretBlock, PrefectSecret
from tests.threads import Hanging, ends_while


class ForeignSecret(SecretBlock):
    """A secret block from another package."""

    async def read_secret(self) -> bytes:
        """Return the bytes."""
        return b"current"

    async def write_secret(self, secret_data: bytes) -> str:
        """Replace the bytes."""
        raise AssertionError("nothing is written")


@pytest.fixture
def vault_url() -> Iterator[str]:
    """The URL of Vault's stand-in."""
    with running(create_app(VaultSandbox())) as url:
        yield url


@pytest.fixture
async def in_vault(vault_url: str) -> AsyncIterator[VaultSecret]:
    """A destination in Vault that has an older version."""
    credentials = VaultCredentials(url=vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    destination = VaultSecret(credentials=credentials, path="app")
    for value in ("old", "current"):
        await destination.write_content(SecretStr(value), await destination.read_content(), {})
    yield destination
    await destination.aclose()


async def test_what_vault_knows_is_passed_on(in_vault: VaultSecret) -> None:
    """A destination in Vault finds older versions, and predicts whether it may be written."""
    assert await in_vault.read_older(lambda value: value == SecretStr("old")) == SecretStr("old")
    assert "can be read and written" in await in_vault.check()


@pytest.mark.parametrize(
    "destination",
    [
        PrefectSecret("secret/checkout", Secret(value="current")),
        AnySecretBlock("foreign-secret/checkout", ForeignSecret()),
    ],
    ids=lambda destination: destination.place(),
)
async def test_a_store_without_versions_finds_nothing_and_cannot_tell(destination: Destination) -> None:
    """Without versions and without a way to ask, the answers are nothing and unknown."""
    assert await destination.read_older(lambda _value: True) is None
    assert await destination.check() == f"{destination.place()} can be read."


class SyncSecret(SecretBlock):
    """A secret block with synchronous methods only."""

    _threads: list[threading.Thread] = []  # noqa: RUF012 - Prefect's blocks take no private fields at construction

    def read_secret(self) -> bytes:  # type: ignore[override]
        """Return the bytes."""
        self._threads.append(threading.current_thread())
        return b"current"

    def write_secret(self, secret_data: bytes) -> str:  # type: ignore[override]
        """Replace the bytes."""
        self._threads.append(threading.current_thread())
        return "written"


async def test_a_block_that_knows_only_sync_code_does_not_stop_the_others() -> None:
    """Its calls run in a thread of their own, so that the slot's lease is renewed and other destinations continue."""
    block = SyncSecret()
    destination = AnySecretBlock("sync-secret/checkout", block)

    held = await destination.read_content()
    await destination.write_content(SecretStr("next"), held, {})

    assert held.value == SecretStr("current")
    assert threading.main_thread() not in block._threads
    assert len(block._threads) == 2


class HangingSecret(SecretBlock):
    """A secret block whose service never answers."""

    async def read_secret(self) -> bytes:
        """Hang forever."""
        await asyncio.Event().wait()
        return b""

    async def write_secret(self, secret_data: bytes) -> str:
        """Hang forever."""
        await asyncio.Event().wait()
        return ""


@pytest.mark.parametrize("what", ["read", "written"])
async def test_a_block_that_never_answers_is_given_up(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends in time with one sentence, and the write counts as one of unknown outcome."""
    monkeypatch.setattr("tasks.world.destinations.CALL_TIMEOUT_SECONDS", 0.02)
    destination = AnySecretBlock("hanging-secret/checkout", HangingSecret())
    call = (
        destination.read_content()
        if what == "read"
        else destination.write_content(SecretStr("next"), Content(None), {})
    )

    with pytest.raises(
        ServiceError, match=rf"^hanging-secret/checkout could not be {what} \(TimeoutError\)\.$"
    ) as failed:
        await call

    assert failed.value.outcome_unknown


class BlockedSecret(SyncSecret):
    """A synchronous secret block whose service never answers."""

    _hanging: Hanging = PrivateAttr(default_factory=Hanging)

    def read_secret(self) -> bytes:  # type: ignore[override]
        """Hang forever."""
        return self._hanging()


def test_a_blocking_call_that_never_returns_does_not_keep_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the timeout its thread is abandoned and not joined, so the run's event loop ends, and its slot is free."""
    monkeypatch.setattr("tasks.world.destinations.CALL_TIMEOUT_SECONDS", 0.02)
    block = BlockedSecret()

    async def read() -> None:
        with pytest.raises(ServiceError, match=r"could not be read \(TimeoutError\)\.$"):
            await AnySecretBlock("blocked-secret/checkout", block).read_content()

    with block._hanging as hanging:
        assert ends_while(hanging, read)


@pytest.mark.parametrize("value", [{"user": "checkout", "password": "hunter2"}, ["hunter2"], 7, None])
async def test_a_json_value_is_not_taken_for_an_empty_place(value: Any) -> None:
    """Such a value contains more than a key, so a rotation must not overwrite it; the sentence quotes nothing."""
    destination = PrefectSecret("secret/checkout", Secret(value=value))

    with pytest.raises(DestinationError, match=r"^secret/checkout holds a JSON value") as failed:
        await destination.check()

    assert "hunter2" not in str(failed.value)


class OddSecret(ForeignSecret):
    """A secret block whose value is not the bytes of a text."""

    answer: Any = None

    async def read_secret(self) -> bytes:
        """Return that value."""
        return self.answer  # type: ignore[no-any-return]


@pytest.mark.parametrize("answer", [b"\xff\xfe", {"user": "checkout"}, 7])
async def test_what_is_no_text_is_not_replaced_by_a_key(answer: Any) -> None:
    """It may be a certificate, for example, that must not be lost; the sentence quotes nothing of it."""
    destination = AnySecretBlock("odd-secret/checkout", OddSecret(answer=answer))

    with pytest.raises(DestinationError, match=r"^odd-secret/checkout holds no text, .* choose another block\.$"):
        await destination.read_content()


async def test_a_place_that_holds_nothing_yet_is_empty() -> None:
    """`None` must not be read as the text "None"."""
    destination = AnySecretBlock("odd-secret/checkout", OddSecret(answer=None))

    assert (await destination.read_content()).value is None


class RefusedSecret(ForeignSecret):
    """A secret block whose service raises an error."""

    _error: Exception = PrivateAttr(default_factory=Exception)

    async def read_secret(self) -> bytes:
        """Raise that error."""
        raise self._error


async def refused(error: Exception) -> ServiceError:
    """Return what a run tells of a foreign error."""
    block = RefusedSecret()
    block._error = error
    with pytest.raises(ServiceError) as failed:
        await AnySecretBlock("aws-secret/checkout", block).read_content()
    return failed.value


def aws(code: Any) -> ClientError:
    """Return botocore's error with a code."""
    return ClientError({"Error": {"Code": code, "Message": "hunter2"}}, "GetSecretValue")


@pytest.mark.parametrize(
    ("error", "shown", "passes"),
    [
        (aws("AccessDeniedException"), "ClientError: AccessDeniedException", False),
        (aws("UnrecognizedClientException"), "ClientError: UnrecognizedClientException", False),
        (aws("InvalidSignatureException"), "ClientError: InvalidSignatureException", False),
        (aws("ExpiredTokenException"), "ClientError: ExpiredTokenException", False),
        (aws("ResourceNotFoundException"), "ClientError: ResourceNotFoundException", False),
        (aws("ValidationException"), "ClientError: ValidationException", False),
        (NoCredentialsError(), "NoCredentialsError", False),
        (aws("ThrottlingException"), "ClientError: ThrottlingException", True),
        (aws("InternalServiceError"), "ClientError: InternalServiceError", True),
        (EndpointConnectionError(endpoint_url="https://hunter2"), "EndpointConnectionError", True),
        (RuntimeError("hunter2"), "RuntimeError", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_aws_says_what_it_refuses_and_whether_a_person_is_needed(
    error: Exception, shown: str, passes: bool
) -> None:
    """A permission or credential that is missing is told at once; what may pass, and whatever is unknown, is tried."""
    told = await refused(error)

    assert str(told) == f"aws-secret/checkout could not be read ({shown})."
    assert passes_by_itself(told) is passes


async def test_an_error_that_botocore_makes_a_type_of_is_named_once() -> None:
    """Errors that AWS documents for a call are types of their own, with the same name as the code."""
    documented = type("ResourceNotFoundException", (ClientError,), {})

    told = await refused(documented({"Error": {"Code": "ResourceNotFoundException"}}, "GetSecretValue"))

    assert str(told) == "aws-secret/checkout could not be read (ResourceNotFoundException)."
    assert not passes_by_itself(told)


@pytest.mark.parametrize("response", ["hunter2", None, {}, {"Error": "hunter2"}, {"Error": {"Code": "hunter2 [x](y)"}}])
async def test_nothing_but_a_code_is_taken_from_a_foreign_error(response: Any) -> None:
    """Another library's error may have a response of any shape, with the secret in it."""
    error = RuntimeError("hunter2")
    error.response = response  # type: ignore[attr-defined] # like botocore's

    assert str(await refused(error)) == "aws-secret/checkout could not be read (RuntimeError)."
