"""The base of the measurements: their setup, a rotation, and counting and timing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import httpx
from rich.table import Table
from starlette.applications import Starlette

from sandbox.openrouter_account import OpenRouterSandbox
from sandbox.setup import CONNECTION
from sandbox.stack import Stack

ROTATIONS_UNDER_LOAD = 20
REQUESTS_PER_SECOND = 50


@dataclass
class Bench:
    """The setup of the measurements, and their results."""

    stack: Stack
    sandbox: OpenRouterSandbox
    openrouter_app: Starlette
    openrouter_url: str
    vault_app: Starlette
    infisical_app: Starlette
    table: Table
    missed: list[str] = field(default_factory=list)

    def row(self, what: str, found: str, aim: str, *, met: bool) -> None:
        """Add a row to the table."""
        self.table.add_row(what, found, aim, "[green]yes[/]" if met else "[red]no[/]")
        if not met:
            self.missed.append(what)


def rotation(name: str, *destinations: str, overlap: timedelta = timedelta(hours=1), **key: Any) -> Any:
    """Return a rotation for the benchmark."""
    from flows import KeySettings, Rotation

    return Rotation(
        name=name,
        connection=CONNECTION,
        key=KeySettings.model_validate({"name": "bench", "limit_usd": 50, "limit_reset": "monthly", **key}),
        destinations=list(destinations),
        overlap=overlap,
    )


@contextmanager
def counted(port: int) -> Iterator[list[str]]:
    """Record the requests to Prefect's API, including those that its client retries.

    Requests with logs do not count: every two seconds, Prefect sends those of all runs in the process.

    Args:
        port: The server's port.
    """
    seen: list[str] = []
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.port == port and request.url.path != "/api/logs/":
            seen.append(f"{request.method} {request.url.path}")
        return await send(transport, request)

    with mock.patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle):
        yield seen


async def timed(run: Callable[[], Awaitable[Any]]) -> float:
    """Run a flow and return its duration in seconds."""
    begun = time.perf_counter()
    state = await run()
    seconds = time.perf_counter() - begun
    assert state.is_completed(), state.message
    return seconds
