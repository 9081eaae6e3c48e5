"""Real processes die: SIGKILL at every effect, SIGSTOP while another run takes over, a server that restarts."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from prefect import get_client
from starlette.applications import Starlette

from flows import rotate
from sandbox.server import Fault, running
from sandbox.stack import Stack
from tests.e2e.conftest import World, with_processes
from tests.e2e.driver import ended, retry, start
from tests.e2e.processes import (
    HELD_SECONDS,
    check_converged,
    give_the_slot_back,
    held_by,
    kill_run,
    process,
    until_held,
)
from tests.e2e.test_worker import everything_stored, spellings, worker  # noqa: F401 - a fixture

pytestmark = with_processes

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
        with process(world, rotation) as started:
            await until_held(app, fault)
            started.kill()
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


@pytest.mark.timeout(300)
async def test_a_killed_run_is_crashed_and_its_retry_finishes_the_same_rotation(world: World, worker: Stack) -> None:  # noqa: F811
    """The worker marks a killed run Crashed at once; Retry waits for the dead run's slot and converges."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/crashed"]))
    fault = world.vault_app.state.faults.add(Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS, times=1))
    run_id = await start(rotation)
    await until_held(world.vault_app, fault)
    kill_run(run_id)
    crashed = await ended(run_id)

    await retry(run_id)
    await give_the_slot_back(rotation)
    healed = await ended(run_id, attempt=2)

    assert crashed.state_name == "Crashed"
    assert healed.state_name == "Completed"
    assert len(world.openrouter.created) == 1
    await check_converged(world, rotation)


async def point_at(world: World, service: str, url: str) -> None:
    """Let the rotations that are prepared from now on find a service at another address."""
    if service == "openrouter":
        await world.connect(f"{url}/api/v1")
    else:
        world.vault_url = url


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("service", "path"), [("openrouter", "/keys$"), ("vault", "/data/")])
async def test_after_a_service_has_stopped_in_mid_run_and_come_back_retry_finishes_the_rotation(
    world: World,
    worker: Stack,  # noqa: F811
    service: str,
    path: str,
) -> None:
    """The service goes down with a call at work, whose answer is lost; once it is up again, Retry converges."""
    app = app_of(world, service)
    with running(app) as url:
        await point_at(world, service, url)
        rotation = await world.prepare(world.rotation(destinations=[f"vault-secret/{service}-stopped"]))
        assert (await rotate(rotation, return_state=True)).is_completed()
        at_work = app.state.faults.add(Fault("after", "POST", path, status=0, delay=HELD_SECONDS, times=1))
        run_id = await start(rotation)
        await until_held(app, at_work, 60)
    failed = await ended(run_id)
    with running(app, urlsplit(url).port or 0):
        await retry(run_id)
        healed = await ended(run_id, attempt=2)

        assert failed.state_name == "Failed"
        assert "Retry is safe" in str(failed.state.message if failed.state else "")
        assert healed.state_name == "Completed"
        await check_converged(world, rotation)


@pytest.mark.timeout(300)
async def test_a_server_that_restarts_in_mid_run_does_no_harm(world: World) -> None:
    """The Prefect server goes away while a run is at work and comes back: that run or the next one converges."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/restart"], overlap=timedelta(0)))
    assert (await rotate(rotation, return_state=True)).is_completed()
    fault = world.openrouter_app.state.faults.add(Fault("after", "POST", "/keys$", status=0, delay=3, times=1))
    with process(world, rotation) as started:
        await until_held(world.openrouter_app, fault)
        await asyncio.to_thread(world.stack.restart_server)
        await asyncio.to_thread(started.wait, 120)

    await give_the_slot_back(rotation)
    assert (await rotate(rotation, return_state=True)).is_completed()

    await check_converged(world, rotation)
