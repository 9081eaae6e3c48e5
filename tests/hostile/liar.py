"""Stand-ins that return wrong responses full of secrets, and a log handler that tests search for these."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.infisical import CLIENT_SECRET
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.vault_tokens import ROOT_TOKEN

KEY = "sk-or-v1-" + "0123456789abcdef" * 4
SECRET_ID = "the-secret-id-of-the-approle"
SECRETS = (KEY, DEFAULT_MANAGEMENT_KEY, ROOT_TOKEN, SECRET_ID, CLIENT_SECRET)
FORMS = (*SECRETS, *(base64.b64encode(secret.encode()).decode().rstrip("=") for secret in SECRETS))
"""Every secret, plain and in base64."""
LEAK = " ".join(FORMS)
MEGABYTE = b"x" * 1_000_000
SOON = "in three seconds"
"""A placeholder for a date shortly after the response is sent."""
Service = Literal["OpenRouter", "Vault", "Infisical", "Prefect"]
Manner = Literal["whole", "huge", "trickle", "dropped"]


@dataclass(frozen=True)
class Answer:
    """A wrong response.

    Args:
        status: Its status.
        body: Its body; by default an error in the service's documented format, full of secrets.
        headers: Headers in addition to those that are full of secrets.
        manner: How it is sent.
    """

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    manner: Manner = "whole"

    def text(self, service: Service) -> bytes:
        """Return the body, by default in the error format of a service."""
        if self.body is not None:
            return self.body.encode()
        documented: dict[Service, Any] = {
            "OpenRouter": {"error": {"code": self.status, "message": LEAK}},
            "Vault": {"errors": [LEAK, LEAK]},
            "Infisical": {"statusCode": self.status, "message": LEAK, "error": LEAK},
            "Prefect": {"detail": LEAK, "exception_message": LEAK},
        }
        return json.dumps(documented[service]).encode()

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers, including some full of secrets."""
        leaky = dict.fromkeys(("x-echo", "set-cookie", "www-authenticate", "location"), LEAK)
        said = {**leaky, **self.headers}
        return [(name.encode(), (_soon() if value == SOON else value).encode()) for name, value in said.items()]


class Liar:
    """An ASGI application that returns a wrong response to matching requests.

    Args:
        app: The stand-in, which answers all other requests.
        service: The service whose error format is used.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service: Service = service
        self.lies: tuple[str, str, Answer] | None = None
        self.told = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or forward it to the stand-in."""
        if scope["type"] != "http" or not self._matches(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        assert self.lies is not None
        self.told += 1
        await self._tell(self.lies[2], send)

    def _matches(self, method: str, path: str) -> bool:
        return (
            self.lies is not None
            and re.fullmatch(self.lies[0], method) is not None
            and bool(re.search(self.lies[1], path))
        )

    async def _tell(self, answer: Answer, send: Send) -> None:
        body = answer.text(self.service)
        headers = answer.raw_headers()
        if answer.manner == "dropped":
            headers.append((b"content-length", b"100000"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if answer.manner == "dropped":
            await send({"type": "http.response.body", "body": body, "more_body": True})
            return
        more, pause = {"huge": (50, 0.0), "trickle": (300, 0.02)}.get(answer.manner, (0, 0.0))
        for _ in range(more):
            await send({"type": "http.response.body", "body": MEGABYTE if not pause else b" ", "more_body": True})
            await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": body})


def _soon() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)


def _html(status: int) -> Answer:
    return Answer(status, f"<html><body>{LEAK}</body></html>", {"content-type": "text/html"})


ANSWERS: dict[str, Answer] = {
    **{
        str(status): Answer(status) for status in (401, 402, 403, 404, 408, 409, 412, 422, 429, 499, 500, 502, 503, 504)
    },
    "429 in seconds": Answer(429, headers={"retry-after": "2"}),
    "429 at a date": Answer(429, headers={"retry-after": SOON}),
    "429 much later": Answer(429, headers={"retry-after": "9" * 400}),
    "redirect": Answer(307),
    **{f"{status} of a proxy": _html(status) for status in (200, 401, 402, 403, 404, 503)},
    "404 in other JSON": Answer(404, json.dumps({"message": LEAK})),
    "truncated": Answer(body=f'{{"data": {{"key": "{LEAK}'),
    "another shape": Answer(body=json.dumps({"leak": LEAK})),
    "another shape inside": Answer(body=json.dumps({"data": {LEAK: LEAK}, "secret": {LEAK: LEAK}, "auth": {LEAK: 1}})),
    "other types": Answer(body=json.dumps(dict.fromkeys(("data", "secret", "auth", "capabilities", "accessToken"), 7))),
    "lists": Answer(body=json.dumps({name: [LEAK] for name in ("data", "secret", "auth", "key")})),
    "a list": Answer(body=json.dumps([LEAK])),
    "a text": Answer(body=json.dumps(LEAK)),
    "null": Answer(body="null"),
    "a number beyond all numbers": Answer(body='{"accessToken": "t", "expiresIn": 1' + "0" * 400 + "}"),
    "nested without end": Answer(body='{"data":' + "[" * 100_000),
    "not UTF-8": Answer(body='{"data": "\udcff"}'.encode("utf-8", "replace").decode() + "\x00"),
    "an object in vain": Answer(body="{}"),
    "empty": Answer(body=""),
    "50 MB": Answer(manner="huge"),
    "50 MB of error": Answer(500, manner="huge"),
    "trickle": Answer(manner="trickle"),
    "dropped": Answer(manner="dropped"),
}


class Ear(logging.Handler):
    """Records all log messages, formatted as in a log file."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record a log record."""
        self.heard.append(self.format(record))

    @property
    def text(self) -> str:
        """Return everything that was recorded."""
        return "\n".join(self.heard)


@contextmanager
def listening() -> Iterator[Ear]:
    """Record the root logger and Prefect's at DEBUG; their own handlers are disabled meanwhile to save time."""
    ear, loggers = Ear(), [logging.getLogger(), logging.getLogger("prefect")]
    before = [(logger, logger.level, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers = [ear]
        logger.setLevel(logging.DEBUG)
    try:
        yield ear
    finally:
        for logger, level, handlers in before:
            logger.handlers = handlers
            logger.setLevel(level)
