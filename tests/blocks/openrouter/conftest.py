"""The OpenRouter client over a transport with scripted answers, and over the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from blocks import OpenRouterCredentials
from blocks.openrouter.client import OpenRouterClient
from sandbox.openrouter import create_app
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox

MANAGEMENT = "sk-or-v1-the-management-key"
PLAINTEXT = "sk-or-v1-the-plaintext-of-a-new-key"
KEY: dict[str, Any] = {
    "hash": "f01d",
    "name": "checkout",
    "label": "sk-or-v1-the...ey",
    "disabled": False,
    "limit": 50.1,
    "limit_reset": "monthly",
    "include_byok_in_limit": False,
    "usage": 0,
    "created_at": "2026-12-01T03:30:00Z",
}
Answer = Callable[[httpx.Request], httpx.Response]


class Server:
    """Answers each request and records it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seen: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return self.answer(request)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def client(self) -> OpenRouterClient:
        """Return a client that sends its requests here, and does not really wait."""
        credentials = OpenRouterCredentials(management_key=MANAGEMENT)
        return credentials.get_client(transport=httpx.MockTransport(self), sleep=self._sleep)


def refused(status: int) -> httpx.Response:
    """Return an error as OpenRouter documents it."""
    return httpx.Response(status, json={"error": {"code": status, "message": "No."}})


def always(status: int, body: Any = None, **headers: str) -> Server:
    """Return a server with one answer for everything; without a body, an error is a documented one."""
    if status >= 400 and body is None:
        body = {"error": {"code": status, "message": "No."}}
    return Server(lambda _request: httpx.Response(status, json=body, headers=headers))


class Account:
    """An account of the stand-in, with a client for it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
        self.state = OpenRouterSandbox(now=lambda: self.now)
        credentials = OpenRouterCredentials(management_key=DEFAULT_MANAGEMENT_KEY)
        self.client = credentials.get_client(transport=httpx.ASGITransport(create_app(self.state)))

    def key(self, guardrail: str | None = None) -> str:
        """Create a key, and return its hash."""
        key = self.state.add_key(self.state.accounts[0], {"name": "checkout"})
        key.guardrail_id = guardrail
        return key.hash

    def guardrail(self) -> str:
        """Create a guardrail, and return its id."""
        guardrail = {"id": str(uuid4()), "workspace_id": self.state.accounts[0].workspaces[0]}
        self.state.guardrails[guardrail["id"]] = guardrail
        return guardrail["id"]


@pytest.fixture
async def account() -> AsyncIterator[Account]:
    """A separate account for each test."""
    account = Account()
    async with account.client:
        yield account
