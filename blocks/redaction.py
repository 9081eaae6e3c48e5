"""Redact what looks like a secret in logs: a second line of defence, on which nothing may rely.

The first line is that no message is built from a secret or a response.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import suppress

STRUCK_OUT = "[redacted]"
_FORMATTER = logging.Formatter()

_LOOKS_SECRET = re.compile(
    r"(?P<openrouter>sk-or-v[0-9]+-)[A-Za-z0-9_-]{21,}"
    # Vault's service, batch and recovery tokens, in the formats since 1.10 and before.
    r"|(?<![\w.-])(?P<vault>hv[sbr]\.|[sbr]\.(?=[A-Za-z0-9]{24}))[A-Za-z0-9_-]{8,}"
    r"|(?P<header>\bx-vault-token['\"]?[\s:=,]+b?['\"]?)[^\s'\",]+"
    r"|(?P<authorization>\bauthorization['\"]?[\s:=,]+b?['\"]?(?:bearer|basic)\s+)[^\s'\",]+"
    r"|(?P<scheme>\b(?:bearer|basic)\s+)(?=[A-Za-z0-9._~+/-]{16})[A-Za-z0-9._~+/=-]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return a text with `[redacted]` after the prefix of each OpenRouter key, Vault token, bearer or basic credential.

    A key's label, such as `sk-or-v1-0e6...1c96`, is kept.
    """
    return _LOOKS_SECRET.sub(lambda found: f"{found[found.lastgroup or 0]}{STRUCK_OUT}", text)


_QUOTE_REQUESTS = frozenset({"boto3", "botocore", "hpack", "websockets"})
"""Libraries whose records below INFO quote requests, where no pattern recognises a secret: in base64, or in a frame."""
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({})))
"""The attributes that every record has; formatters for JSON print the others too."""


class RedactionFilter(logging.Filter):
    """Redacts message, traceback, stack and extras of each record; drops DEBUG records that quote requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record in place; return `False` for one that quotes a request."""
        if record.name.partition(".")[0] in _QUOTE_REQUESTS and record.levelno < logging.INFO:
            return False
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - an argument may raise anything, and logging must not fail the caller
            # The arguments do not fit the message: logging would print both, including the secret.
            message = f"{record.msg} {record.args}"
        if (clean := redacted(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        if record.exc_text and (clean := redacted(record.exc_text)) != record.exc_text:
            # A formatter that formats `exc_info` again would restore the secret.
            record.exc_text, record.exc_info = clean, None
        if record.stack_info:
            record.stack_info = redacted(record.stack_info)
        _redact_extras(record)
        return True


def _redact_extras(record: logging.LogRecord) -> None:
    for name in vars(record).keys() - _OWN_ATTRIBUTES:
        # What has no text cannot be printed either.
        with suppress(Exception):
            text = str(getattr(record, name))
            if (clean := redacted(text)) != text:
                setattr(record, name, clean)


_QUOTES_ANSWER = (
    "receive_response_headers.complete",
    "receive_response_headers.failed",
    "receive_response_body.failed",
    "Failed to parse headers",
)
"""Prefixes of the records in which httpcore and urllib3 quote a response or its protocol errors."""


class _AnswerFilter(logging.Filter):
    """Drops the records in which HTTP libraries quote a response, whose content is not under our control."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_QUOTES_ANSWER)


_REDACTION = RedactionFilter()
_NO_ANSWERS = _AnswerFilter()


def keep_answers_out_of_logs() -> None:
    """Keep responses out of the log: at DEBUG, httpx and urllib3 would log their headers."""
    for name in ("httpcore.http11", "httpcore.http2", "urllib3.connection"):
        logging.getLogger(name).addFilter(_NO_ANSWERS)


def redact_logs() -> None:
    """Add the redaction filter to all log handlers of this process; idempotent."""
    for handler in _handlers():
        handler.addFilter(_REDACTION)


def _handlers() -> Iterator[logging.Handler]:
    # On handlers, because a logger's filter does not see the records of its child loggers.
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            yield from logger.handlers
