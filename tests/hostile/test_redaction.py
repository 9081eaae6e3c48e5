"""The second line of defence: the log masks whatever looks like a secret."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from blocks.redaction import RedactionFilter, redact_logs, redacted
from tests.hostile.liar import KEY, Ear

VAULT_TOKEN = "hvs.CAESIJ0kZ1xG4s7YbV2mQ9wLrT8uN3pA6eDcFhKq"
OLD_TOKEN = "s.iyNUhq8Ov4hIAx6snw5mB2nL"


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


def test_a_request_to_aws_is_in_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """At DEBUG, botocore logs requests with the key in base64; the filter drops these, but keeps warnings."""
    monkeypatch.setattr(logging.getLogger("botocore"), "level", logging.DEBUG)
    before, after = Ear(), Ear()
    after.addFilter(RedactionFilter())
    for ear in (before, after):
        logging.getLogger("botocore").addHandler(ear)
    client = boto3.client(
        "secretsmanager",
        region_name="eu-central-1",
        endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}),
    )

    with pytest.raises(EndpointConnectionError):
        client.put_secret_value(SecretId="checkout", SecretBinary=KEY.encode())
    logging.getLogger("botocore.endpoint").warning("something else")

    for ear in (before, after):
        logging.getLogger("botocore").removeHandler(ear)
    in_base64 = base64.b64encode(KEY.encode()).decode()
    assert in_base64 in before.text
    assert in_base64 not in after.text
    assert "something else" in after.text


def test_it_is_installed_once_per_handler() -> None:
    """Each run installs the filter, and handlers must not accumulate it."""
    handler = logging.NullHandler()
    logging.getLogger("tests.hostile.twice").addHandler(handler)

    redact_logs()
    redact_logs()

    assert [type(found) for found in handler.filters] == [RedactionFilter]
