"""How tests deal with real processes: start one, know the moment to kill it, and see what is left of its rotation."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.variables import Variable
from starlette.applications import Starlette

from sandbox.server import Fault
from sandbox.stack import CHECKOUT
from tasks.destinations import open_destination
from tasks.ledger import Ledger, ledger_variable
from tasks.rotation import Rotation
from tests.e2e.conftest import World

SCRIPT = str(CHECKOUT / "tests" / "e2e" / "run_rotation.py")
HELD_SECONDS = 60.0
"""How long a stand-in holds a request whose process is about to be killed."""


@contextmanager
def process(world: World, rotation: Rotation, api: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the rotation once, and finds Prefect's server at `api`, or at its usual place."""
    env = {**world.stack.env, "PYTHONPATH": str(CHECKOUT)}
    if api is not None:
        env["PREFECT_API_URL"] = f"{api}/api"
    command = [sys.executable, SCRIPT, rotation.model_dump_json()]
    log = (world.stack.home / "logs" / "kills.log").open("ab")
    started = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.send_signal(signal.SIGCONT)
            started.kill()
        started.wait()
        log.close()


async def until_held(app: Starlette, fault: Fault, within: float = 30.0) -> None:
    """Wait until a stand-in holds the request, its effect done or not."""
    deadline = time.monotonic() + within
    while fault.times and time.monotonic() < deadline:  # noqa: ASYNC110 - another thread tells
        await asyncio.sleep(0.02)
    assert fault.times == 0, "the effect never came"
    await asyncio.sleep(0.3)  # the handler of a request that is held after its effect has run by now
    app.state.faults.clear()


async def give_the_slot_back(rotation: Rotation) -> None:
    """Do at once what the end of the dead process's lease does within a minute."""
    async with get_client() as client:
        await client.update_global_concurrency_limit(
            f"key-rotation-{rotation.name}", GlobalConcurrencyLimitUpdate(active_slots=0)
        )


async def held_by(rotation: Rotation) -> set[str]:
    """What the rotation's destination holds now."""
    destination = await open_destination(rotation.destinations[0])
    try:
        held = await destination.read()
    finally:
        await destination.aclose()
    return set() if held.value is None else {held.value.get_secret_value()}


async def check_converged(world: World, rotation: Rotation) -> None:
    """One live key, held by the destination, and nothing pending."""
    ledger = Ledger.model_validate(await Variable.aget(ledger_variable(rotation.name)))
    live = {key.secret for key in world.openrouter.live_keys()}

    assert ledger.pending is None
    assert ledger.superseded == ()
    assert await held_by(rotation) == live, await story(world, rotation, ledger)
    assert len(live) == 1


async def story(world: World, rotation: Rotation, ledger: Ledger) -> str:
    """What a person needs to see when the keys that are alive are not those that are held."""
    async with get_client() as client:
        runs = await client.read_flow_runs(limit=200)
    lines = [f"ledger: {ledger.model_dump_json()}"]
    lines += [f"key: {asdict(key)}" for key in world.openrouter.keys.values()]
    lines += [f"deleted: {world.openrouter.deleted}", f"held: {await held_by(rotation)}"]
    lines += [
        f"run: {run.id} {run.start_time} {run.run_count} {run.parameters} {run.state}"
        for run in runs
        if rotation.name in str(run.parameters)
        or any(str(run.id) in key.name for key in world.openrouter.keys.values())
    ]
    return "\n".join(lines)


def processes_of(run_id: UUID) -> list[int]:
    """The processes of a flow run, found by what their environment says."""
    wanted = f"PREFECT__FLOW_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def kill_run(run_id: UUID) -> None:
    """Kill every process of a flow run."""
    for pid in processes_of(run_id):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
