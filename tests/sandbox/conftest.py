"""The OpenRouter stand-in with a clock that tests control."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from openrouter import OpenRouter
from openrouter.utils import BackoffStrategy, RetryConfig

from sandbox.openrouter import create_app
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, StoredKey
from sandbox.server import running

MONDAY = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)


class StandIn:
    """The stand-in, its state and its clock."""

    def __init__(self) -> None:
        self.now = MONDAY
        self.state = OpenRouterSandbox(now=lambda: self.now)
        self.app = create_app(self.state)
        self.url = ""
        self.http = httpx.Client()

    def sdk(self, key: str = DEFAULT_MANAGEMENT_KEY) -> OpenRouter:
        """An SDK client that uses this key and does not retry."""
        once = RetryConfig("none", BackoffStrategy(0, 0, 0, 0), False)
        return OpenRouter(api_key=key, server_url=f"{self.url}/api/v1", retry_config=once)

    def call(self, key: str) -> httpx.Response:
        """Send a chat completion with a key."""
        body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
        return self.http.post("/api/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})

    def manage(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Send a request to the management API."""
        headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}
        return self.http.request(method, f"/api/v1{path}", json=body, headers=headers)

    def new_key(self, **fields: object) -> StoredKey:
        """Create a key in the first account."""
        return self.state.add_key(self.state.accounts[0], {"name": "checkout", **fields})


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A new stand-in for each test."""
    stand_in = StandIn()
    with running(stand_in.app) as stand_in.url, stand_in.http:
        stand_in.http.base_url = httpx.URL(stand_in.url)
        yield stand_in
