"""The lower bound of a rotation's wall time: a flow that only sends the same requests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from uuid import uuid4

import httpx
from prefect import flow

from bench.measuring import Bench, timed

BY_THE_ENGINE = re.compile(
    "(POST /api/(flows|flow_runs|logs)/)|(GET /api/(flows|flow_runs)/[^/]+)|(POST /api/flow_runs/[^/]+/set_state)"
)
"""The requests that Prefect's engine sends for every flow, including this one."""
AGAIN_AFTER_SECONDS = 0.02
TAKEN, GIVEN_BACK = "/increment-with-lease", "/decrement-with-lease"


@contextmanager
def recorded(bench: Bench) -> Iterator[list[httpx.Request]]:
    """Record the requests to Prefect's API and to OpenRouter, except for the engine's own."""
    seen: list[httpx.Request] = []
    send = httpx.AsyncHTTPTransport.handle_async_request
    ports = {bench.stack.port, httpx.URL(bench.openrouter_url).port}

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.port in ports and not BY_THE_ENGINE.fullmatch(f"{request.method} {request.url.path}"):
            await request.aread()
            seen.append(request)
        return await send(transport, request)

    with mock.patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle):
        yield seen


async def floor_of(
    bench: Bench, run: Callable[[], Awaitable[Any]], task: Callable[[], Awaitable[None]], tasks: int
) -> Callable[[], Awaitable[Any]]:
    """Return a flow that runs some empty tasks, and sends a run's requests again, one after another.

    Args:
        bench: The setup.
        run: The run whose requests are recorded.
        task: An empty task.
        tasks: How many of them to run.
    """
    with recorded(bench) as requests:
        await timed(run)

    @flow(name="floor", persist_result=False)
    async def floor() -> None:
        for _ in range(tasks):
            await task()
        async with httpx.AsyncClient(timeout=60) as client:
            lease = ""
            for each in requests:
                answer = await _sent(client, each, lease)
                if each.url.path.endswith(TAKEN):
                    lease = answer.json()["lease_id"]

    return lambda: floor(return_state=True)


async def _sent(client: httpx.AsyncClient, request: httpx.Request, lease: str) -> httpx.Response:
    while True:
        body = _body(request, lease)
        answer = await client.request(request.method, request.url, headers=_headers(request), content=body)
        # An embedded database rejects some writes, and the slot may be released shortly after its run has ended.
        if answer.status_code not in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.LOCKED):
            return answer
        await asyncio.sleep(AGAIN_AFTER_SECONDS)


def _headers(request: httpx.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name != "content-length"}


def _body(request: httpx.Request, lease: str) -> bytes:
    body: Any = json.loads(request.content) if request.content else None
    if request.method == "POST" and request.url.path == "/api/variables/":
        # A variable's name is unique.
        body["name"] = f"bench-floor-{uuid4()}"
    if request.url.path.endswith(GIVEN_BACK):
        body["lease_id"] = lease
    return json.dumps(body).encode() if body is not None else request.content
