"""Workers that are killed, that run concurrently, and whose runs a person cancels."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from uuid import UUID

import pytest

from flows import rotate
from sandbox.server import Fault
from sandbox.stack import Stack
from tasks.model.rotation import Rotation
from tasks.model.tries import TRIES_AGAIN
from tests.by_hand import ledger_of
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import cancel, deploy_to, ended, retry, signal_run, start
from tests.e2e.processes import (
    HELD_SECONDS,
    check_converged,
    give_the_slot_back,
    retry_after_death,
    traces,
    until_held,
)

pytestmark = with_processes

POOL = "two-workers"


@pytest.fixture(scope="module")
def two_workers(stack: Stack) -> Iterator[str]:
    """A pool with two workers, each with a limit of one, and a deployment in it."""
    with stack.as_client():
        asyncio.run(deploy_to(POOL, "process"))
    workers = [stack.start_worker(f"{POOL}-{number}", kind="process", pool=POOL, limit=1) for number in range(2)]
    yield POOL
    for worker in workers:
        worker.stop()


async def owner(rotation: Rotation) -> UUID:
    """Return the run that has announced a key in the ledger and not published it yet."""
    pending = (await ledger_of(rotation.name)).pending
    assert pending is not None
    return pending.run_id


async def test_a_killed_run_is_crashed_and_its_retry_finishes_the_same_rotation(
    services: Services, two_workers: str
) -> None:
    """The worker marks a killed run as Crashed at once; Retry waits for the dead run's slot and converges."""
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/crashed"]))
    fault = Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS, times=1)
    services.vault_app.state.faults.add(fault)
    run_id = await start(rotation, deployment_name=two_workers)
    await until_held(fault)
    signal_run(run_id, signal.SIGKILL)
    crashed = await ended(run_id)

    await retry(run_id)
    await give_the_slot_back(rotation.name)
    healed = await ended(run_id, attempt=2)

    assert crashed.state_name == "Crashed"
    assert healed.state_name == "Completed"
    assert len(services.openrouter.created) == 1
    await check_converged(services, rotation)


async def test_of_two_runs_by_two_workers_the_late_one_stops_without_writing_or_revoking(
    services: Services, two_workers: str
) -> None:
    """Two runs start together; the first is stopped before it publishes, and continues once the other has completed."""
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/two"]))
    assert (await rotate(rotation, return_state=True)).is_completed()
    before_publish = Fault("after", "GET", "/key$", status=0, delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(before_publish)
    runs = {await start(rotation, deployment_name=two_workers) for _ in range(2)}
    await until_held(before_publish)
    late = await owner(rotation)
    signal_run(late, signal.SIGSTOP)
    try:
        await give_the_slot_back(rotation.name)
        quick = await ended((runs - {late}).pop())
        before = await traces(services, rotation)
        before_publish.delay = 0
    finally:
        signal_run(late, signal.SIGCONT)
    stopped = await ended(late)

    assert quick.state_name == "Completed"
    assert stopped.state_name == TRIES_AGAIN
    assert "Retry is safe" in str(stopped.state.message if stopped.state else "")
    assert await traces(services, rotation) == before
    await check_converged(services, rotation)


async def test_a_run_that_is_cancelled_in_the_dashboard_ends_cancelled(services: Services, two_workers: str) -> None:
    """A cancelled run ends as Cancelled, whatever it was doing, and the next run converges."""
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/cancelled"]))
    before_publish = Fault("after", "GET", "/key$", status=0, delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(before_publish)
    run_id = await start(rotation, deployment_name=two_workers)
    await until_held(before_publish)

    await cancel(run_id)
    cancelled = await ended(run_id)
    await give_the_slot_back(rotation.name)
    healed = await rotate(rotation, return_state=True)

    assert cancelled.state_name == "Cancelled"
    assert healed.is_completed()
    await check_converged(services, rotation)


async def test_a_worker_killed_alone_leaves_a_run_that_finishes(services: Services) -> None:
    """SIGKILL of the worker does not reach the run's process: that completes the rotation, or a Retry does."""
    await deploy_to("killed-worker", "process")
    worker = services.stack.start_worker("killed-worker", kind="process", pool="killed-worker")
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/survivor"]))
    assert (await rotate(rotation, return_state=True)).is_completed()
    in_publish = Fault("before", "POST", "/data/", status=0, delay=HELD_SECONDS, times=1)
    services.vault_app.state.faults.add(in_publish)
    run_id = await start(rotation, deployment_name="killed-worker")
    await until_held(in_publish)

    os.kill(worker.pid, signal.SIGKILL)
    in_publish.delay = 0
    finished = await ended(run_id)

    # A run prints into its worker's pipe, and may crash once that is closed; then Retry recovers.
    if finished.state_name != "Completed":
        assert (await retry_after_death(run_id, rotation.name)).is_completed()
    await check_converged(services, rotation)


async def test_an_emergency_has_a_worker_of_its_own_queue_where_the_others_are_full(services: Services) -> None:
    """While a worker with a limit is busy, an emergency in another queue with its own worker does not wait."""
    pool, queue = "limited", "emergency"
    await deploy_to(pool)
    services.stack.cli("work-queue", "create", queue, "--pool", pool, "--priority", "1")
    full = services.stack.start_worker(f"{pool}-full", pool=pool, limit=1, queue="default")
    ordinary = await services.prepare(services.rotation(destinations=["vault-secret/full"]))
    stolen = await services.prepare(services.rotation())
    assert (await rotate(stolen, return_state=True)).is_completed()
    # Hold every attempt: a worker may take longer to start than the client waits for an answer.
    at_vault = services.vault_app.state.faults.add(Fault("before", "GET", "/data/", status=0, delay=HELD_SECONDS))
    at_work = await start(ordinary, deployment_name=pool)
    await until_held(at_vault)
    free = services.stack.start_worker(f"{pool}-free", pool=pool, queue=queue)

    emergency = await ended(await start(stolen, emergency=True, deployment_name=pool, queue=queue))

    at_vault.delay = 0
    held_up = await ended(at_work)
    assert (emergency.state_name, held_up.state_name) == ("Completed", "Completed")
    assert emergency.end_time is not None
    assert held_up.end_time is not None
    assert emergency.end_time < held_up.end_time
    await check_converged(services, stolen)
    for worker in (full, free):
        worker.stop()
