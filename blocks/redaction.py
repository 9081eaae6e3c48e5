"""The second line of defence against a secret in a log: whatever looks like one is struck out before it is written.

The first line is that no message is made from a secret or an answer; nothing may rely on this one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

STRUCK_OUT = "[redacted]"
_FORMATTER = logging.Formatter()

_LOOKS_SECRET = re.compile(
    r"(?P<openrouter>sk-or-v[0-9]+-)[A-Za-z0-9_-]{21,}"
    # Vault's service, batch and recovery tokens, as they are since 1.10 and as they were before.
    r"|(?<![\w.-])(?P<vault>hv[sbr]\.|[sbr]\.(?=[A-Za-z0-9]{24}))[A-Za-z0-9_-]{8,}"
    r"|(?P<header>\bx-vault-token['\"]?[\s:=,]+b?['\"]?)[^\s'\",]+"
    r"|(?P<bearer>\bbearer\s+)(?=[A-Za-z0-9._~+/-]{16})[A-Za-z0-9._~+/=-]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Strike out what looks like a secret.

    Args:
        text: Any text.

    Returns:
        The text, in which each OpenRouter key, Vault token and bearer credential has become its kind and
        `[redacted]`. A key's label, such as `sk-or-v1-0e6...1c96`, stays.
    """
    return _LOOKS_SECRET.sub(lambda found: f"{found[found.lastgroup or 0]}{STRUCK_OUT}", text)


_QUOTE_REQUESTS = "botocore."
"""Whose records below INFO quote whole requests, with the secret in base64, which looks like nothing in particular."""


class RedactionFilter(logging.Filter):
    """Lets records pass without what looks like a secret in message, traceback and stack; drops AWS's DEBUG records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact one record; one that holds no secret is left exactly as it is.

        Args:
            record: The record, changed in place.

        Returns:
            `False` for a record that quotes a request to AWS; `True` for every other one.
        """
        if record.name.startswith(_QUOTE_REQUESTS) and record.levelno < logging.INFO:
            return False
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            # Arguments that do not fit their message: logging prints both, and so would leave the secret in.
            message = f"{record.msg} {record.args}"
        if (clean := redacted(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        if record.exc_text and (clean := redacted(record.exc_text)) != record.exc_text:
            # A formatter that spells the error anew would bring the secret back.
            record.exc_text, record.exc_info = clean, None
        if record.stack_info:
            record.stack_info = redacted(record.stack_info)
        return True


_QUOTES_ANSWER = (
    "receive_response_headers.complete",
    "receive_response_headers.failed",
    "receive_response_body.failed",
    "Failed to parse headers",
)
"""How the records begin by which httpcore and urllib3 log what was answered, or what of it breaks the protocol."""


class _AnswerFilter(logging.Filter):
    """Drops the records by which HTTP libraries quote an answer, which anybody may have filled."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_QUOTES_ANSWER)


_REDACTION = RedactionFilter()
_NO_ANSWERS = _AnswerFilter()


def keep_answers_out_of_logs() -> None:
    """Keep answers out of the log, even at DEBUG: httpx and urllib3 would write their headers there."""
    for name in ("httpcore.http11", "httpcore.http2", "urllib3.connection"):
        logging.getLogger(name).addFilter(_NO_ANSWERS)


def redact_logs() -> None:
    """Redact everything that this process's log handlers write from now on; repeating it does no harm."""
    for handler in _handlers():
        handler.addFilter(_REDACTION)


def _handlers() -> Iterator[logging.Handler]:
    # On handlers, not on loggers: a logger's filter does not see the records of the loggers below it.
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            yield from logger.handlers
