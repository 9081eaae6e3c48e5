"""Real processes die: SIGKILL at every effect, SIGSTOP while another run takes over, a server that restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.variables import Variable
from starlette.applications import Starlette

from flows import rotate
from sandbox.server import Fault
from sandbox.stack import CHECKOUT, Stack
from tasks.destinations import open_destination
from tasks.ledger import Ledger, ledger_variable
from tasks.rotation import Rotation
from tests.e2e.conftest import World, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.driver import ended, retry, start
from tests.e2e.test_worker import everything_stored, spellings, worker  # noqa: F401 - a fixture

SCRIPT = str(CHECKOUT / "tests" / "e2e" / "run_rotation.py")
HELD_SECONDS = 60.0
"""How long a stand-in holds a request whose process is about to be killed."""
EFFECTS = [
    ("openrouter", "POST", "/keys$"),
    ("openrouter", "GET", "/key$"),
    ("openrouter", "GET", "/keys/"),
    ("openrouter", "DELETE", "/keys/"),
    ("vault", "GET", "/data/"),
    ("vault", "POST", "/data/"),
    ("vault", "PATCH", "/metadata/"),
]


def app_of(world: World, service: str) -> Starlette:
    """The stand-in of a service."""
    return {"openrouter": world.openrouter_app, "vault": world.vault_app}[service]


@contextmanager
def process(world: World, rotation: Rotation) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the rotation once."""
    env = {**world.stack.env, "PYTHONPATH": str(CHECKOUT)}
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


async def until_held(app: Starlette, fault: Fault) -> None:
    """Wait until a stand-in holds the request, its effect done or not."""
    deadline = time.monotonic() + 30
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
    assert await held_by(rotation) == live
    assert len(live) == 1


@pytest.mark.timeout(400)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_killed_at_any_effect_leaves_nothing_that_the_next_run_does_not_heal(
    world: World, when: str
) -> None:
    """SIGKILL before, or after, each effect in turn: the published key works on, and the next run converges."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/kills"]))
    assert (await rotate(rotation, return_state=True)).is_completed()
    for service, method, path in EFFECTS:
        app = app_of(world, service)
        fault = app.state.faults.add(Fault(when, method, path, status=0, delay=HELD_SECONDS, times=1))
        with process(world, rotation) as running:
            await until_held(app, fault)
            running.kill()
        assert all(world.openrouter.is_live(held) for held in await held_by(rotation)), (service, method, path)

        await give_the_slot_back(rotation)
        assert (await rotate(rotation, return_state=True)).is_completed(), (service, method, path)

        await check_converged(world, rotation)
    stored = everything_stored(world.stack.home)
    assert [s[:16] for s in world.openrouter.secrets for spelling in spellings(s) if spelling in stored] == []


async def test_a_run_that_lost_its_place_stops_before_its_next_write(world: World) -> None:
    """A run stopped before its publish, and continued after another has finished, writes and revokes nothing."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/stopped"]))
    assert (await rotate(rotation, return_state=True)).is_completed()
    fault = world.openrouter_app.state.faults.add(Fault("after", "GET", "/keys/", status=0, delay=3, times=1))
    with process(world, rotation) as late:
        await until_held(world.openrouter_app, fault)
        late.send_signal(signal.SIGSTOP)
        await give_the_slot_back(rotation)
        assert (await rotate(rotation, return_state=True)).is_completed()
        held, deleted = await held_by(rotation), list(world.openrouter.deleted)
        late.send_signal(signal.SIGCONT)
        await asyncio.to_thread(late.wait, 60)

    assert await held_by(rotation) == held
    assert world.openrouter.deleted == deleted
    async with get_client() as client:
        states = [run.state.message or "" for run in await client.read_flow_runs(limit=200) if run.state]
    assert any("has taken over" in message for message in states)
    await check_converged(world, rotation)


def processes_of(run_id: UUID) -> list[int]:
    """The processes of a flow run, found by what their environment says."""
    wanted = f"PREFECT__FLOW_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.timeout(300)
async def test_a_killed_run_is_crashed_and_its_retry_finishes_the_same_rotation(world: World, worker: Stack) -> None:  # noqa: F811
    """The worker marks a killed run Crashed at once; Retry waits for the dead run's slot and converges."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/crashed"]))
    fault = world.vault_app.state.faults.add(Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS, times=1))
    run_id = await start(rotation)
    await until_held(world.vault_app, fault)
    for pid in processes_of(run_id):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    crashed = await ended(run_id)

    await retry(run_id)
    await give_the_slot_back(rotation)
    healed = await ended(run_id, attempt=2)

    assert crashed.state_name == "Crashed"
    assert healed.state_name == "Completed"
    assert len(world.openrouter.created) == 1
    await check_converged(world, rotation)


@pytest.mark.timeout(300)
async def test_a_server_that_restarts_in_mid_run_does_no_harm(world: World) -> None:
    """The Prefect server goes away while a run is at work and comes back: that run or the next one converges."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/restart"], overlap=timedelta(0)))
    assert (await rotate(rotation, return_state=True)).is_completed()
    fault = world.openrouter_app.state.faults.add(Fault("after", "POST", "/keys$", status=0, delay=3, times=1))
    with process(world, rotation) as running:
        await until_held(world.openrouter_app, fault)
        await asyncio.to_thread(world.stack.restart_server)
        await asyncio.to_thread(running.wait, 120)

    await give_the_slot_back(rotation)
    assert (await rotate(rotation, return_state=True)).is_completed()

    await check_converged(world, rotation)
