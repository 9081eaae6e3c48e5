"""The second line of defence: the log masks whatever looks like a secret."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import hpack
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError
from prefect.events import Event, Resource
from prefect.events.clients import PrefectEventsClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from blocks.redaction import RedactionFilter, redact_logs, redacted
from flows.worker import KeyRotationWorker
from tests.hostile.liar import KEY, Ear

VAULT_TOKEN = "hvs.CAESIJ0kZ1xG4s7YbV2mQ9wLrT8uN3pA6eDcFhKq"
OLD_TOKEN = "s.iyNUhq8Ov4hIAx6snw5mB2nL"
PASSWORD = "operator:a-long-random-password"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"made {KEY}.", "made sk-or-v1-[redacted]."),
        (f'{{"key": "{KEY}"}}', '{"key": "sk-or-v1-[redacted]"}'),
        (f"token {VAULT_TOKEN}", "token hvs.[redacted]"),
        (f"token={OLD_TOKEN}, b.AAAAAQL5Ygh3mNc0Qk1d8sJx9Zz", "token=s.[redacted], b.[redacted]"),
        ("X-Vault-Token: root-of-a-dev-server", "X-Vault-Token: [redacted]"),
        ("(b'X-Vault-Token', b'root')", "(b'X-Vault-Token', b'[redacted]')"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.x-_", "Authorization: Bearer [redacted]"),
        ("Authorization: Basic b3A6cHc=", "Authorization: Basic [redacted]"),
        ("(b'authorization', b'Basic b3A6cHc=')", "(b'authorization', b'Basic [redacted]')"),
        ("sent Basic b3BlcmF0b3I6YS1sb25nLXBhc3N3b3Jk", "sent Basic [redacted]"),
    ],
)
def test_what_looks_like_a_secret_is_struck_out(text: str, expected: str) -> None:
    """Keys, Vault tokens and credentials in headers are redacted; the text around them does not change."""
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The key sk-or-v1-0e6...1c96 is live.",
        "sk-or-v1-the-label-of-20-char is 20 characters"[:20],
        "blocks.errors.UnreachableErrorOfSomeVeryLongName",
        "Vault does not accept the bearer of bad news, nor the Bearer.",
        "Prefect's API asks for basic authentication, and every authorization is a basic precaution.",
        "hash f01d52606dc8f0a8303a7b5cc3fa07109c2e346cec7c0a16b40de462992ce943",
        "[rotation checkout run 12345678-1234-1234-1234-123456789abc]",
    ],
)
def test_what_people_need_to_read_stays(text: str) -> None:
    """Labels, hashes, run ids and plain sentences do not change."""
    assert redacted(text) == text


@pytest.fixture
def ear() -> Ear:
    """A handler with the filter."""
    made = Ear()
    made.addFilter(RedactionFilter())
    return made


@pytest.fixture
def log(ear: Ear) -> Iterator[logging.Logger]:
    """A separate logger for the test."""
    logger = logging.getLogger("tests.hostile.redaction")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(ear)
    yield logger
    logger.removeHandler(ear)


def test_arguments_are_redacted(log: logging.Logger, ear: Ear) -> None:
    """A secret in an argument does not reach the message."""
    log.info("made %s at %s", KEY, "OpenRouter")

    assert ear.text.endswith("made sk-or-v1-[redacted] at OpenRouter")


def test_arguments_that_do_not_fit_are_redacted_too(log: logging.Logger, ear: Ear) -> None:
    """A log call with the wrong format neither fails nor reveals the secret in its arguments."""
    log.info("made %d", KEY)

    assert KEY not in ear.text
    assert "sk-or-v1-[redacted]" in ear.text


def test_an_argument_that_has_no_text_does_not_fail_whoever_logs_it(log: logging.Logger, ear: Ear) -> None:
    """The filter must not raise: logging catches the errors of a handler's formatting, but not those of its filters."""

    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError

    log.warning("made %s with %s", KEY, Unspeakable())

    assert KEY not in ear.text
    assert "sk-or-v1-[redacted]" in ear.text


def test_a_traceback_is_redacted(log: logging.Logger, ear: Ear) -> None:
    """Secrets in an error's text are masked, and the traceback still shows the place."""
    try:
        int(KEY)
    except ValueError:
        log.exception("It failed.", stack_info=True)

    assert KEY not in ear.text
    assert "ValueError: invalid literal for int() with base 10: 'sk-or-v1-[redacted]'" in ear.text
    assert "test_redaction.py" in ear.text


def test_a_record_without_a_secret_is_not_touched() -> None:
    """Other handlers still get the original message, arguments and error."""
    record = logging.LogRecord("a", logging.INFO, __file__, 1, "at %s", ("once",), None)

    RedactionFilter().filter(record)

    assert (record.msg, record.args) == ("at %s", ("once",))


@contextmanager
def library(name: str) -> Iterator[tuple[Ear, Ear]]:
    """Record a library at DEBUG, without the filter and with it."""
    logger, before, after = logging.getLogger(name), Ear(), Ear()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    after.addFilter(RedactionFilter())
    for ear in (before, after):
        logger.addHandler(ear)
    try:
        yield before, after
    finally:
        logger.setLevel(level)
        for ear in (before, after):
            logger.removeHandler(ear)


def test_a_request_to_aws_is_in_no_log() -> None:
    """At DEBUG, botocore logs requests with the key in base64; the filter drops these, but keeps warnings."""
    client = boto3.client(
        "secretsmanager",
        region_name="eu-central-1",
        endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}),
    )

    with library("botocore") as (before, after):
        with pytest.raises(EndpointConnectionError):
            client.put_secret_value(SecretId="checkout", SecretBinary=KEY.encode())
        logging.getLogger("botocore.endpoint").warning("something else")

    in_base64 = base64.b64encode(KEY.encode()).decode()
    assert in_base64 in before.text
    assert in_base64 not in after.text
    assert "something else" in after.text


async def test_the_password_of_prefects_api_is_in_no_log() -> None:
    """At DEBUG, websockets logs the password of Prefect's API in a header and in a frame; the filter drops both."""

    async def welcome(connection: ServerConnection) -> None:
        async for message in connection:
            if json.loads(message)["type"] == "auth":
                await connection.send('{"type": "auth_success"}')

    with library("websockets") as (before, after):
        async with serve(welcome, "127.0.0.1", 0, subprotocols=[Subprotocol("prefect")]) as server:
            api = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
            with temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: PASSWORD}):
                async with PrefectEventsClient() as client:
                    await client.emit(Event(event="rotated", resource=Resource({"prefect.resource.id": "a"})))
        logging.getLogger("websockets.client").warning("something else")

    for spelled in (PASSWORD, base64.b64encode(PASSWORD.encode()).decode()):
        assert spelled in before.text
        assert spelled not in after.text
    assert "something else" in after.text


def test_a_header_of_http_2_is_in_no_log() -> None:
    """At DEBUG, hpack logs each header that HTTP/2 compresses; the filter drops these records."""
    with library("hpack") as (before, after):
        hpack.Encoder().encode([("x-api-key", PASSWORD)])

    assert PASSWORD in before.text
    assert PASSWORD not in after.text


def test_what_a_formatter_adds_to_the_message_is_redacted(log: logging.Logger, ear: Ear) -> None:
    """A formatter for JSON prints a record's own attributes, which are redacted too, and are kept otherwise."""
    ear.setFormatter(logging.Formatter("%(request)s %(count)s"))
    log.info("sent", extra={"request": {"authorization": f"Bearer {KEY}"}, "count": 3})

    assert ear.text == "{'authorization': 'Bearer [redacted]'} 3"


def test_it_is_installed_once_per_handler() -> None:
    """Each run installs the filter, and handlers must not accumulate it."""
    handler = logging.NullHandler()
    logging.getLogger("tests.hostile.twice").addHandler(handler)

    redact_logs()
    redact_logs()

    assert [type(found) for found in handler.filters] == [RedactionFilter]


def test_a_worker_has_it_before_its_first_run() -> None:
    """A worker sends the password of Prefect's API from its start on, so its own log is filtered as a run's is."""
    handler = logging.NullHandler()
    logging.getLogger("tests.hostile.worker").addHandler(handler)

    KeyRotationWorker("pool")

    assert [type(found) for found in handler.filters] == [RedactionFilter]
