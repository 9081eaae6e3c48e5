"""Measure what one rotation costs at Prefect's API, and how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import httpx
from prefect import flow, task
from prefect.blocks.system import Secret

from bench.measuring import Bench, rotation, timed
from flows import retire, rotate
from sandbox.setup import PLACEHOLDER

WARM_UP = 2
"""Rotations that are not counted: the first ones make what the others find."""


@task(persist_result=False)
async def nothing() -> None:
    """Do nothing."""


@flow(name="empty", persist_result=False)
async def empty() -> None:
    """Run as many tasks as a rotation has."""
    for _ in range(4):
        await nothing()


async def prepared(name: str, *, destinations: int = 1) -> Any:
    """Return a rotation without an overlap, after its first runs."""
    names = [name, *(f"{name}-{number}" for number in range(1, destinations))]
    for each in names:
        await Secret(value=PLACEHOLDER).asave(each, overwrite=True)
    subject = rotation(name, *(f"secret/{each}" for each in names), overlap=timedelta(0))
    for _ in range(WARM_UP):
        await timed(lambda: rotate(subject, return_state=True))
    return subject


@contextmanager
def counted(bench: Bench) -> Iterator[list[str]]:
    """Collect the requests to Prefect's API, those that its client sends again included."""
    seen: list[str] = []
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.port == bench.stack.port:
            seen.append(f"{request.method} {request.url.path}")
        return await send(transport, request)

    with mock.patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle):
        yield seen


async def calls(bench: Bench) -> None:
    """Count the calls of a rotation, of each further destination, of a retirement, and of the empty flow."""
    one, three = await prepared("bench-one"), await prepared("bench-three", destinations=3)
    found = []
    for run in (
        lambda: rotate(one, return_state=True),
        lambda: rotate(three, return_state=True),
        lambda: retire(one.name, return_state=True),
        lambda: empty(return_state=True),
    ):
        with counted(bench) as seen:
            await timed(run)
        found.append(len(seen))
    first, third, due, floor = found
    what = "calls to Prefect per rotation, one destination"
    bench.row(what, f"{first} (empty flow: {floor})", "at most 24", met=first <= 24)
    more = (third - first) / 2
    bench.row("calls to Prefect per further Prefect secret", f"{more:g}", "at most 3", met=more <= 3)
    bench.row("calls to Prefect of a retirement with nothing due", str(due), "at most 10", met=due <= 10)


async def wall_time(bench: Bench, database: str, pairs: int) -> None:
    """Compare a rotation with a flow of as many empty tasks, alternating on the same server."""
    subject = await prepared("bench-time")
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(await timed(lambda: rotate(subject, return_state=True)))
        theirs.append(await timed(lambda: empty(return_state=True)))
    a, b = statistics.median(ours), statistics.median(theirs)
    found = f"{a / b:.2f} ({a * 1000:.0f} ms / {b * 1000:.0f} ms, median of {pairs})"
    bench.row(f"wall time of a rotation / of a flow with 4 empty tasks, {database}", found, "at most 2", met=a / b <= 2)


async def longest(bench: Bench, rotations: int) -> None:
    """Compare the longest of many rotations, one right after the other, with their median."""
    subject = await prepared("bench-longest")
    seconds = [await timed(lambda: rotate(subject, return_state=True)) for _ in range(rotations)]
    ratio = max(seconds) / statistics.median(seconds)
    found = f"{ratio:.1f} ({max(seconds):.2f} s / {statistics.median(seconds):.2f} s)"
    bench.row(f"longest of {rotations} rotations / their median, SQLite", found, "at most 3", met=ratio <= 3)
