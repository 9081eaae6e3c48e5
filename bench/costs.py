"""Measure the requests to Prefect's API and the wall time of a rotation."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from prefect import Flow, flow, get_client, task
from prefect.blocks.system import Secret
from prefect.states import Pending

from bench.floor import floor_of
from bench.measuring import Bench, counted, rotation, timed
from flows import retire, rotate
from flows.attempts import Attempt
from tasks.model.keys import NOT_YET_ROTATED
from tasks.world.api import OWN_TAG

TASKS = 4
"""The number of steps of a rotation to one destination."""
OVERLAP = timedelta(hours=1)
ROTATION, RETIREMENT = 24, 10
"""The most calls to Prefect's API that a rotation to one destination may make, and a retirement with nothing due."""
WARM_UP = 2
"""Rotations that are not measured: the first ones create what later ones find."""


@task(persist_result=False)
async def nothing() -> None:
    """Do nothing."""


@flow(name="empty", persist_result=False)
async def empty() -> None:
    """Run as many empty tasks as a rotation has tasks."""
    for _ in range(TASKS):
        await nothing()


async def prepared(name: str, *, destinations: int = 1, overlap: timedelta = timedelta(0)) -> Any:
    """Return a rotation after its first runs."""
    names = [name, *(f"{name}-{number}" for number in range(1, destinations))]
    for each in names:
        await Secret(value=NOT_YET_ROTATED).asave(each, overwrite=True)
    subject = rotation(name, *(f"secret/{each}" for each in names), overlap=overlap)
    for _ in range(WARM_UP):
        await timed(lambda: rotate(subject, return_state=True))
    return subject


async def calls(bench: Bench) -> None:
    """Count the requests of a rotation, of each further destination, of a retirement, and of the empty flow."""
    one, three = (
        await prepared("bench-one", overlap=OVERLAP),
        await prepared("bench-three", destinations=3, overlap=OVERLAP),
    )
    at_once = await prepared("bench-at-once")
    await timed(await a_retirement(one.name))
    floor = await usual(bench, [lambda: empty(return_state=True)] * 3)
    first = await usual(bench, [lambda: rotate(one, return_state=True)] * 3)
    third = await usual(bench, [lambda: rotate(three, return_state=True)] * 3)
    both = await usual(bench, [lambda: rotate(at_once, return_state=True)] * 3)
    due = await usual(bench, [await a_retirement(one.name) for _ in range(3)])
    what = "calls to Prefect per rotation, one destination"
    bench.row(what, f"{first} (empty flow: {floor})", f"at most {ROTATION}", met=first <= ROTATION)
    more = (third - first) / 2
    bench.row("calls to Prefect per further Prefect secret", f"{more:g}", "at most 3", met=more <= 3)
    what = "calls to Prefect of a retirement with nothing due"
    bench.row(what, str(due), f"at most {RETIREMENT}", met=due <= RETIREMENT)
    what = "calls to Prefect of a rotation with overlap PT0S, which revokes in the same run"
    bench.row(what, str(both), f"at most {ROTATION} + {RETIREMENT}", met=both <= ROTATION + RETIREMENT)


async def usual(bench: Bench, runs: list[Callable[[], Awaitable[Any]]]) -> int:
    """Return the median number of requests, so that a run with a retried request does not count."""
    found = []
    for run in runs:
        with counted(bench.stack.port) as seen:
            await timed(run)
        found.append(len(seen))
    return round(statistics.median(found))


async def a_retirement(rotation: str) -> Callable[[], Awaitable[Any]]:
    """Return a function that executes a retirement as a worker does."""
    return await as_attempt(retire, f"retire {rotation}", {"rotation": rotation}, [OWN_TAG, rotation])


async def as_attempt(
    what: Flow[..., Any], name: str, parameters: dict[str, Any], tags: list[str]
) -> Callable[[], Awaitable[Any]]:
    """Return a function that executes a flow as a worker does: as an attempt of a named and tagged run."""
    async with get_client() as client:
        deployment_id = await client.create_deployment(
            await client.create_flow(what), what.name, entrypoint=f"flows.{what.name}:{what.name}", pull_steps=[]
        )
        run = await client.create_flow_run_from_deployment(
            deployment_id, parameters=parameters, state=Pending(), name=name, tags=tags
        )
    attempt = Attempt(flow=what, flow_run=run, parameters=run.parameters)

    async def ended() -> Any:
        await attempt.make()
        return attempt.state

    return ended


async def requests_alone(bench: Bench, subject: Any) -> Callable[[], Awaitable[Any]]:
    """Return a flow that sends the requests of a rotation and runs as many empty tasks: the least that it can cost."""
    return await floor_of(bench, lambda: rotate(subject, return_state=True), nothing, TASKS)


async def wall_time(bench: Bench, database: str, pairs: int) -> None:
    """Compare, alternating on one server: a rotation, its requests alone, and a flow of as many empty tasks."""
    subject = await prepared("bench-time")
    floor = await requests_alone(bench, subject)
    runs = (lambda: rotate(subject, return_state=True), lambda: empty(return_state=True), floor)
    seconds = [[await timed(run) for run in runs] for _ in range(pairs)]
    ours, theirs, least = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = ours / theirs
    found = (
        f"{ratio:.2f} ({ours * 1000:.0f} ms / {theirs * 1000:.0f} ms, median of {pairs}; "
        f"its requests alone: {least / theirs:.2f})"
    )
    bench.row(f"wall time of a rotation / of a flow with 4 empty tasks, {database}", found, "at most 2", met=ratio <= 2)


async def longest(bench: Bench, rotations: int) -> None:
    """Compare the longest of many consecutive rotations with their median."""
    subject = await prepared("bench-longest")
    parameters = {"rotation": subject.model_dump(mode="json")}
    seconds = [
        await timed(await as_attempt(rotate, f"rotate {subject.name}", parameters, [subject.name]))
        for _ in range(rotations)
    ]
    ratio = max(seconds) / statistics.median(seconds)
    found = f"{ratio:.1f} ({max(seconds):.2f} s / {statistics.median(seconds):.2f} s)"
    bench.row(f"longest of {rotations} rotations / their median, SQLite", found, "at most 3", met=ratio <= 3)
