"""Measure rotations that workers execute: their cost, many at once, and an emergency."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect import get_client
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.states import Scheduled

from bench.costs import prepared, requests_alone
from bench.measuring import Bench, rotation, timed
from flows import rotate
from sandbox.stack import WORKER_TYPE, Process
from sandbox.usage import memory_mb
from tasks.model.keys import NOT_YET_ROTATED
from tasks.world.ledgers import prune_ledgers

EMERGENCIES = 5
ALONE = 30
"""How often the requests of a rotation are sent alone."""
SECONDS_PER_RUN = 0.75
"""The target for many rotations due at once: 150 s for 200."""
MEMORY_TOLERANCE = 1.1
WITHIN_SECONDS = 3600.0
TICKS = os.sysconf("SC_CLK_TCK")


class HerdCost(NamedTuple):
    """Rotations that were due at once: the time until the last one ended, and the cost of one."""

    seconds: float
    worker_cpu: float
    server_cpu: float
    emergency: float


class Pool:
    """A work pool with a deployment, a worker, and rotations.

    Args:
        bench: The setup.
        kind: The worker's type.
        limit: How many runs the worker executes at once; the type's default if `None`.
    """

    def __init__(self, bench: Bench, kind: str, limit: int | None = None) -> None:
        self._bench = bench
        self._name = f"bench-{kind}"
        self._kind = kind
        self._limit = limit
        self._deployment = UUID(int=0)
        self.worker: Process

    async def open(self) -> None:
        """Create the pool and the deployment, start the worker, and wait for its first run."""
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=self._name, type=self._kind), overwrite=True)
            self._deployment = await client.create_deployment(
                await client.create_flow(rotate),
                self._name,
                work_pool_name=self._name,
                entrypoint="flows.rotate:rotate",
                pull_steps=[],
                job_variables={"command": "python -m prefect.engine"},
            )
        self.worker = self._bench.stack.start_worker(self._name, kind=self._kind, pool=self._name, limit=self._limit)
        self.stolen = await self._rotation(f"{self._name}-stolen")
        await ended([await self.start(self.stolen)])

    async def _rotation(self, name: str) -> Any:
        await Secret(value=NOT_YET_ROTATED).asave(name, overwrite=True)
        return rotation(name, f"secret/{name}", overlap=timedelta(0))

    async def rotations(self, number: int) -> list[Any]:
        """Create rotations that have not run yet."""
        return [await self._rotation(f"{self._name}-{each}") for each in range(number)]

    async def start(self, subject: Any, *, emergency: bool = False, at: datetime | None = None) -> UUID:
        """Start a run, or schedule it."""
        parameters = {"rotation": subject.model_dump(mode="json"), "emergency": emergency}
        state: Any = Scheduled(scheduled_time=at) if at else None
        async with get_client() as client:
            run = await client.create_flow_run_from_deployment(self._deployment, parameters=parameters, state=state)
        return run.id

    async def emergency(self) -> float:
        """Return the seconds from the start of an emergency until the old key is dead."""
        held: Any = await Secret.aload(self.stolen.name)
        old, begun = held.value.get_secret_value(), time.perf_counter()
        run_id = await self.start(self.stolen, emergency=True)
        while self._bench.sandbox.is_live(old) and time.perf_counter() - begun < WITHIN_SECONDS:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
        seconds = time.perf_counter() - begun
        await ended([run_id])
        return seconds

    async def at_once(self, subjects: list[Any], *, with_emergency: bool = False) -> HerdCost:
        """Make rotations due at the same time, and wait for the last one."""
        assert self._bench.stack.server is not None
        at = datetime.now(UTC) + timedelta(seconds=5 + 0.1 * len(subjects))
        run_ids = [await self.start(subject, at=at) for subject in subjects]
        await asyncio.sleep((at - datetime.now(UTC)).total_seconds())
        worker, server = cpu_seconds(self.worker), cpu_seconds(self._bench.stack.server)
        seconds = 0.0
        if with_emergency:
            await asyncio.sleep(1)
            seconds = await self.emergency()
        runs = await ended(run_ids)
        last: datetime = max(run.end_time for run in runs if run.end_time)
        number = len(runs) + with_emergency
        return HerdCost(
            (last - at).total_seconds(),
            (cpu_seconds(self.worker) - worker) / number,
            (cpu_seconds(self._bench.stack.server) - server) / number,
            seconds,
        )


async def ended(run_ids: list[UUID]) -> list[FlowRun]:
    """Wait until all runs have completed.

    Raises:
        RuntimeError: One did not complete.
    """
    deadline = time.monotonic() + WITHIN_SECONDS
    own = FlowRunFilter(id=FlowRunFilterId(any_=run_ids))
    unfinished = FlowRunFilter(
        id=own.id, state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[*TERMINAL_STATES]))
    )
    async with get_client() as client:
        # Counted, not read: the server must not spend its time on the measurement.
        while await client.count_flow_runs(flow_run_filter=unfinished) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        runs = await client.read_flow_runs(flow_run_filter=own)
    for run in runs:
        if run.state is None or not run.state.is_completed():
            raise RuntimeError(f"{run.name} did not complete: {run.state}")
    return runs


def cpu_seconds(process: Process) -> float:
    """Return the CPU time of a process and of its descendants, in seconds."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        # All processes of its session: their CPU time and that of their ended children (proc(5), fields 6, 14 to 17).
        if int(fields[3]) == process.pid:
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


async def least_server_cpu(bench: Bench) -> float:
    """Return the server's CPU time of the requests of a rotation alone, in seconds."""
    assert bench.stack.server is not None
    run = await requests_alone(bench, await prepared("bench-alone"))
    before = cpu_seconds(bench.stack.server)
    for _ in range(ALONE):
        await timed(run)
    return (cpu_seconds(bench.stack.server) - before) / ALONE


async def compare(bench: Bench, database: str, herd: int, many: int) -> None:
    """Compare this package's worker with a process worker.

    Args:
        bench: The setup.
        database: The server's database, for the table.
        herd: How many rotations are due at once.
        many: After how many rotations the worker's memory is measured.
    """
    process = Pool(bench, "process", limit=6)
    await process.open()
    theirs = await process.at_once(await process.rotations(herd))
    process.worker.stop()
    pool = Pool(bench, WORKER_TYPE)
    await pool.open()
    idle = [await pool.emergency() for _ in range(EMERGENCIES)]
    subjects = await pool.rotations(herd)
    ours = await pool.at_once(subjects)
    disturbed = await pool.at_once(subjects, with_emergency=True)

    said = f"{ours.worker_cpu:.2f} s (process worker: {theirs.worker_cpu:.2f} s)"
    bench.row(f"worker's CPU time per rotation, {database}", said, "at most 0.3 s", met=ours.worker_cpu <= 0.3)
    least = await least_server_cpu(bench)
    said = f"{ours.server_cpu:.2f} s (process worker: {theirs.server_cpu:.2f} s; its requests alone: {least:.2f} s)"
    bench.row(f"server's CPU time per rotation, {database}", said, "at most 0.5 s", met=ours.server_cpu <= 0.5)
    said = f"{ours.seconds:.0f} s (process worker with 6 at a time: {theirs.seconds:.0f} s)"
    aim = SECONDS_PER_RUN * herd
    bench.row(f"{herd} due at once, {database}", said, f"at most {aim:.0f} s", met=ours.seconds <= aim)
    said = f"{statistics.median(idle):.1f} s (median of {EMERGENCIES}, longest {max(idle):.1f} s)"
    bench.row("emergency, worker idle", said, "at most 2 s", met=statistics.median(idle) <= 2)
    said = f"{disturbed.emergency:.1f} s"
    bench.row(f"emergency, {herd} due at once", said, "at most 3 s", met=disturbed.emergency <= 3)
    await memory(bench, pool, subjects[:20], many)


async def memory(bench: Bench, pool: Pool, subjects: list[Any], many: int) -> None:
    """Compare the worker's memory after many rotations with that after a twentieth of them."""
    early, done = 0.0, 0
    while done < many:
        await ended([await pool.start(subject) for subject in subjects])
        done += len(subjects)
        # As the overview does each minute: Prefect's server reads all variables for every run that is created.
        await prune_ledgers()
        early = early or (memory_mb(pool.worker.pid) if done >= many / 20 else 0.0)
    late = memory_mb(pool.worker.pid)
    what = f"worker's memory after {many} more rotations / after {many // 20}"
    met = late / early <= MEMORY_TOLERANCE
    bench.row(what, f"{late / early:.2f} ({late:.0f} MB / {early:.0f} MB)", f"at most {MEMORY_TOLERANCE}", met=met)
