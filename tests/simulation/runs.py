"""Run the real flows against the model world, and record how they end."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import tasks.life.plan
from blocks.errors import (
    KeyRotationError,
)
from flows.apply_settings import apply_deployed_settings
from flows.audit import follow_audit
from flows.remove_rotation import remove
from flows.restore_key import restore
from flows.retire import retire_due
from flows.rotate import follow_protocol
from flows.write_off_key import follow_write_off
from tasks.audit.findings import Report
from tasks.model.decisions import Identity
from tasks.model.rotation import Rotation
from tasks.steps import PLAIN, Steps
from tasks.world.open_ledger import OpenLedger, prune
from tasks.world.run import Run
from tests.simulation.world.clock import LoopWithoutWaiting
from tests.simulation.world.ledgers import ModelStore
from tests.simulation.world.model import Model
from tests.simulation.world.orchestrator import ModelWorld
from tests.simulation.world.process import Crash, Process

T = TypeVar("T")


def open_run(model: Model, name: str, identity: Identity, process: Process) -> Run:
    """Begin a run in a process."""
    model.runs.add(identity.id)
    return Run(
        name,
        identity,
        OpenLedger(name, ModelStore(process, name), identity.id),
        ModelWorld(process),
    )


@dataclass(frozen=True)
class Ended:
    """The end of a run: a message, an error, or a kill."""

    message: str | None = None
    error: KeyRotationError | None = None
    killed: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the run completed."""
        return self.message is not None

    def __str__(self) -> str:
        return "it was killed" if self.killed else self.message or f"it failed: {self.error}"


async def run_protocol(
    model: Model, rotation: Rotation, identity: Identity, process: Process | None = None, steps: Steps = PLAIN
) -> Ended:
    """Run the protocol of a rotation once, in a process of its own."""
    process = process or Process(model)
    run = open_run(model, rotation.name, identity, process)
    return await _until_it_ends(follow_protocol(run, rotation, steps), model)


async def run_retire(model: Model, rotation: str, identity: Identity, process: Process | None = None) -> Ended:
    """Run the retirement of a rotation once, in a process of its own."""
    process = process or Process(model, "retire")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(retire_due(run, PLAIN), model)


async def run_restore(model: Model, rotation: str, identity: Identity, process: Process | None = None) -> Ended:
    """Restore the most recently superseded key, in a process of its own."""
    process = process or Process(model, "restore")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(restore(run, "", PLAIN), model)


async def run_apply(model: Model, rotation: str, identity: Identity, process: Process | None = None) -> Ended:
    """Apply the deployment's settings to the current key, in a process of its own."""
    process = process or Process(model, "apply")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(apply_deployed_settings(run), model)


async def run_remove(
    model: Model, rotation: str, identity: Identity, revoke_at: datetime | None, process: Process | None = None
) -> Ended:
    """Remove the rotation, in a process of its own."""
    process = process or Process(model, "remove")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(remove(run, revoke_at, PLAIN), model)


async def run_write_off(
    model: Model, rotation: str, identity: Identity, key_hash: str, process: Process | None = None
) -> Ended:
    """Write a key off, in a process of its own."""
    process = process or Process(model, "write off")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(follow_write_off(run, key_hash, "its account is gone"), model)


@dataclass(frozen=True)
class Planned:
    """The end of a plan, and the steps that it names."""

    ended: Ended
    steps: tuple[str, ...] = ()


async def run_plan(model: Model, rotation: Rotation, identity: Identity, process: Process | None = None) -> Planned:
    """Plan what a run would do now, in a process of its own."""
    run = open_run(model, rotation.name, identity, process or Process(model, "plan"))
    steps: list[str] = []

    async def work() -> str:
        steps.extend((await tasks.life.plan.plan(run, rotation))[1])
        return "Nothing was changed."

    return Planned(await _until_it_ends(work()), tuple(steps))


@dataclass(frozen=True)
class Audited:
    """The end of an audit, and its report."""

    ended: Ended
    report: Report | None = None


async def run_audit(
    model: Model, connection: str, identity: Identity, *, repair: bool, process: Process | None = None
) -> Audited:
    """Audit a connection, in a process of its own."""
    process = process or Process(model, "audit")
    reports: list[Report] = []

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[Run]:
        yield Run(
            name,
            identity,
            OpenLedger(name, ModelStore(process, name), identity.id),
            ModelWorld(process),
        )

    async def work() -> str:
        open_rotation = opened if repair else None
        reports.append(await follow_audit(ModelWorld(process), connection, timedelta(days=90), open_rotation))
        return f"{reports[0].findings}"

    ended = await _until_it_ends(work())
    return Audited(ended, reports[0] if reports else None)


async def prune_ledgers(model: Model) -> None:
    """Delete outdated terms, as a run of the overview does."""
    for name in model.rotations():
        with suppress(KeyRotationError, Crash):
            await prune(ModelStore(Process(model, "overview"), name), model.terms(name))


async def _until_it_ends(work: Awaitable[str], model: Model | None = None) -> Ended:
    try:
        try:
            ended = Ended(message=await work)
        except KeyRotationError as error:
            ended = Ended(error=error)
        if model is not None:
            await prune_ledgers(model)
    except Crash:
        return Ended(killed=True)
    return ended


LOOP = LoopWithoutWaiting()
"""One event loop for all runs: creating a loop takes as long as a run, a millisecond."""
atexit.register(LOOP.close)


def play(work: Awaitable[T]) -> T:
    """Run a coroutine from a synchronous test, and cancel the tasks that it leaves behind."""

    async def main() -> T:
        return await work

    try:
        return LOOP.run_until_complete(main())
    finally:
        if left := asyncio.all_tasks(LOOP):
            for task in left:
                task.cancel()
            LOOP.run_until_complete(asyncio.wait(left))
