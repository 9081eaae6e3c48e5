"""Real processes in tests: start one, kill it at the right time, and verify what is left of its rotation."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.states import Crashed
from starlette.applications import Starlette

from flows import retire
from flows.slot import slot_of
from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.model.keys import read_marker
from tasks.model.ledger import Ledger
from tasks.model.rotation import Rotation
from tasks.world.destinations import open_destination
from tests.by_hand import ledger_of, ledger_value
from tests.e2e import child
from tests.e2e.conftest import Services
from tests.e2e.driver import attempt, begin_rotation, ended, retry
from tests.e2e.leaks import leaks
from tests.e2e.proxy import Barrier, serving

HELD_SECONDS = 600.0
"""How long the request of a process is held that is killed, or that a test releases."""
REACHED_WITHIN = 200.0
"""How long a process may take to make the request that a test waits for, in seconds."""
ROTATIONS_UNTIL_ONE_MEETS = 5
# The interpreter starts and imports everything once; each process is a fork of it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.e2e.child"])


When = Literal["before", "after"]
"""Whether to kill a process before a request reaches the service, or after its effect and before its answer."""


class Effect(NamedTuple):
    """A request with which a run changes something, or whose answer decides what it changes next.

    Args:
        service: The service that receives it.
        request: A regular expression for method and path, such as `POST /keys$`.
        skip: How many such requests to let through first.
    """

    service: str
    request: str
    skip: int = 0


def app_of(services: Services, service: str) -> Starlette:
    """Return the stand-in of a service."""
    return {"openrouter": services.openrouter_app, "vault": services.vault_app, "infisical": services.infisical_app}[
        service
    ]


@contextmanager
def process(services: Services, run_id: UUID, api: str | None = None) -> Iterator[BaseProcess]:
    """Execute a flow run in a process of its own, with Prefect's server at `api` or at its usual address."""
    env = services.stack.env if api is None else {**services.stack.env, "PREFECT_API_URL": f"{api}/api"}
    log = services.stack.home / "logs" / "processes.log"
    started = FORKS.Process(target=child.run, args=(run_id, env, str(log), services.worker_type), daemon=True)
    started.start()
    try:
        yield started
    finally:
        started.kill()
        started.join()


async def ended_by_itself(started: BaseProcess) -> None:
    """Wait until a process has ended."""
    await asyncio.to_thread(started.join, REACHED_WITHIN)
    assert started.exitcode is not None, "the process goes on and on"


async def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + REACHED_WITHIN
    while not happened():
        assert time.monotonic() < deadline, "the effect never came"
        await asyncio.sleep(0.02)


async def until_held(fault: Fault) -> None:
    """Wait until a stand-in holds the request, before or after its effect."""
    await _until(lambda: fault.struck > 0)


async def _met(started: BaseProcess, is_met: Callable[[], bool]) -> bool:
    """Wait until a process is stopped by a condition; return `False` if it ends without meeting it."""
    await _until(lambda: is_met() or started.exitcode is not None)
    return is_met()


async def met_and_killed(services: Services, run_id: UUID, effect: Effect, when: When) -> bool:
    """Execute a flow run in a process of its own, and kill that before an effect, or after it and before its answer.

    Returns:
        `False` if the run ended without that effect.
    """
    if effect.service == "prefect":
        async with serving(Barrier(services.stack.url, when, effect.request, effect.skip)) as between:
            with process(services, run_id, between.url) as started:
                return await _met(started, between.reached.is_set)
    app, (method, _, path) = app_of(services, effect.service), effect.request.partition(" ")
    fault = app.state.faults.add(Fault(when, method, path, status=0, delay=HELD_SECONDS, skip=effect.skip, times=1))
    with process(services, run_id) as started:
        met = await _met(started, lambda: fault.struck > 0)
    app.state.faults.clear()
    return met


async def kill_at(services: Services, run_id: UUID, effect: Effect, when: When) -> None:
    """Kill a flow run at an effect that every such run has."""
    assert await met_and_killed(services, run_id, effect, when), f"the run ended without {effect}"


async def rotation_killed_at(services: Services, rotation: Rotation, effect: Effect, when: When) -> UUID:
    """Start rotations until one is killed at an effect.

    On a busy server, a run may keep the former key because of a possible late write; such a run ends without the
    effects of a revocation.
    """
    for _ in range(ROTATIONS_UNTIL_ONE_MEETS):
        run_id = await begin_rotation(rotation)
        if await met_and_killed(services, run_id, effect, when):
            return run_id
        last = await ended(run_id)
        assert last.state is not None, effect
        assert last.state.is_completed(), (effect, last.state)
    raise AssertionError(f"no rotation came to {effect}")


async def retry_after_death(run_id: UUID, rotation: str) -> State[Any]:
    """Mark a run whose process died as crashed, as a worker does, retry it, and return its final state."""
    async with get_client() as client:
        if not (state := (await client.read_flow_run(run_id)).state) or not state.is_final():
            await client.set_flow_run_state(run_id, Crashed(message="Its process died."))
    await give_the_slot_back(rotation)
    await retry(run_id)
    return await attempt(run_id)


async def give_the_slot_back(rotation: str) -> None:
    """Release the slot of a dead process at once; its lease would take up to a minute to expire."""
    async with get_client() as client:
        await client.update_global_concurrency_limit(slot_of(rotation), GlobalConcurrencyLimitUpdate(active_slots=0))


async def held_at(destination: str) -> set[str]:
    """Return what a destination holds: one secret, or none."""
    opened = await open_destination(destination)
    try:
        held = (await opened.read_content()).value
    finally:
        await opened.aclose()
    return set() if held is None else {held.get_secret_value()}


async def held_by(rotation: Rotation) -> set[str]:
    """Return what the rotation's destinations hold."""
    return set().union(*[await held_at(name) for name in rotation.destinations])


def keys_of(services: Services, rotation: Rotation) -> list[StoredKey]:
    """Return the keys at OpenRouter with the rotation's marker, usable or not."""
    marked = [(key, read_marker(key.name)) for key in services.openrouter.keys.values()]
    return [key for key, mark in marked if mark and mark[0] == rotation.name]


async def traces(services: Services, rotation: Rotation) -> Any:
    """Return everything that a run could have changed: ledger, keys, and every version at every destination."""
    records = vars(services.vault.namespaces[""]["secret"])["records"]
    versions = {path: record.current for path, record in records.items()}
    keys = sorted(services.openrouter.keys), list(services.openrouter.deleted)
    return await ledger_value(rotation.name), keys, versions, await held_by(rotation)


async def check_no_outage(services: Services, rotation: Rotation, during: object = "") -> None:
    """Verify that every destination holds a working key."""
    for name in rotation.destinations:
        held = await held_at(name)
        assert held, (during, name)
        assert all(services.openrouter.is_live(secret) for secret in held), (during, name)


async def check_one_key(services: Services, rotation: Rotation, during: object = "") -> None:
    """Verify that there is one key, which works and which every destination holds, and that nothing is pending.

    For a minute, keys that a dead process's late write could restore may live, too.
    """
    now, ledger = datetime.now(UTC), await ledger_of(rotation.name)
    assert all(key.late_until for key in ledger.superseded), during
    if ledger.due(now):
        # That minute ended after the last run; the retirement scheduled for its end finds no worker here.
        assert (await retire(rotation.name, return_state=True)).is_completed(), during
        ledger = await ledger_of(rotation.name)
    there = {key.hash: key for key in keys_of(services, rotation)}
    current = ledger.current

    assert ledger.pending is None, during
    assert current is not None, during
    assert all(key.late_until and key.late_until > now for key in ledger.superseded), during
    assert set(there) == ledger.hashes(), (during, await story(services, rotation, ledger))
    assert await held_by(rotation) == {there[current.hash].secret}, (during, await story(services, rotation, ledger))
    await check_no_outage(services, rotation, during)


def check_nothing_leaked(services: Services) -> None:
    """Verify that no file and no database row holds a key, a token or a password."""
    assert leaks(services) == []


async def check_converged(services: Services, rotation: Rotation) -> None:
    """Verify the end of every test: one key that works everywhere, nothing pending, no secret in a wrong place."""
    await check_one_key(services, rotation)
    check_nothing_leaked(services)


async def story(services: Services, rotation: Rotation, ledger: Ledger) -> str:
    """Return what a person needs to see if the existing keys differ from the held ones."""
    async with get_client() as client:
        runs = await client.read_flow_runs(limit=200)
    lines = [f"ledger: {ledger.model_dump_json()}"]
    lines += [f"key: {asdict(key)}" for key in services.openrouter.keys.values()]
    lines += [f"deleted: {services.openrouter.deleted}", f"held: {await held_by(rotation)}"]
    lines += [
        f"run: {run.id} {run.start_time} {run.run_count} {run.parameters} {run.state}"
        for run in runs
        if rotation.name in str(run.parameters)
        or any(str(run.id) in key.name for key in services.openrouter.keys.values())
    ]
    return "\n".join(lines)
