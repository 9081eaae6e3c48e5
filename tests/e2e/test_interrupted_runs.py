"""A run of a `key-rotation` worker ends properly if it is cancelled or suspended, or if its worker stops."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect import flow, get_client, task
from prefect.states import Crashed, Running, Suspended

from flows.attempts import Attempt
from flows.worker import KeyRotationWorker
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.model.tries import TRIES_AGAIN
from tasks.world.tries import try_again
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import begin_rotation, cancel, deploy_to, ended, events, retry, start
from tests.e2e.in_process import POLL_SECONDS, at_work, message, running
from tests.e2e.processes import (
    HELD_SECONDS,
    check_converged,
    check_nothing_leaked,
    give_the_slot_back,
    retry_after_death,
    until_held,
)
from tests.e2e.trying import fail, pending, tries_of

pytestmark = with_processes


async def test_a_run_that_is_interrupted_and_not_cancelled_is_crashed(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """Crashed and Cancelled must differ, so that an automation for crashed runs ignores a person's Cancel."""

    @flow(persist_result=False)
    async def interrupted() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(HELD_SECONDS)

    async with at_work("interrupted"):
        run = await ended(await start_flow(interrupted, "interrupted"))

    assert run.state_name == "Crashed"


async def test_a_run_that_is_cancelled_before_it_begins_is_cancelled(
    services: Services, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for a later attempt, too, which Prefect's own worker treats as a running one."""
    begun: list[int] = []

    @flow(persist_result=False)
    async def again() -> None:
        begun.append(1)

    async with at_work("cancelled-early"):
        run_id = await start_flow(again, "cancelled-early")
        assert (await ended(run_id)).state_name == "Completed"
    begin = Attempt.begin_run

    async def begin_late(attempt: Attempt) -> Any:
        await cancel(run_id)
        return await begin(attempt)

    monkeypatch.setattr(Attempt, "begin_run", begin_late)
    await retry(run_id)
    async with KeyRotationWorker("cancelled-early", prefetch_seconds=0) as worker:
        assert [run.id for run in await worker.get_and_submit_flow_runs()] == [run_id]
        assert (await ended(run_id)).state_name == "Cancelled"

    assert begun == [1]


async def test_a_run_that_others_have_ended_stops_without_another_state(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """Given a worker that stood still, and whose run was marked as crashed, the run is left to its try."""
    began, steps = threading.Event(), []

    @flow(persist_result=False)
    async def stood_still() -> None:
        began.set()
        await asyncio.sleep(HELD_SECONDS)
        steps.append("next")

    async with KeyRotationWorker("stood-still", prefetch_seconds=0) as worker, get_client() as client:
        run_id = await start_flow(stood_still, "stood-still")
        await worker.get_and_submit_flow_runs()
        await running(began)
        await client.set_flow_run_state(run_id, Crashed(message="It has sent no heartbeat."))
        await worker.get_and_submit_flow_runs()
        while worker._attempts:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(POLL_SECONDS)

        states = await client.read_flow_run_states(run_id)

    assert [state.name for state in states] == ["Scheduled", "Pending", "Running", "Crashed"]
    assert steps == []


async def test_a_run_that_fails_after_its_try_has_begun_alerts_nobody(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a run that counted as crashed and went on, its try does the work, and alerts if it cannot."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)
    rotation = await services.prepare(services.rotation())
    run_id = await begin_rotation(rotation)
    async with get_client() as client:
        crashed = await client.read_flow_run(run_id)
    # Its attempt has the number 1 when it fails.
    following = await try_again(crashed.model_copy(update={"run_count": 1}), "rotate", datetime.now(UTC), crashed=True)
    [planned] = await pending(rotation.name)
    async with get_client() as client:
        await client.set_flow_run_state(planned.id, Running(), force=True)

    failed = await fail(services, run_id)

    assert following is not None
    assert failed.name == TRIES_AGAIN
    assert "This run counted as crashed before, and its try 1 of" in str(failed.message)
    assert [run.id for run in await tries_of(rotation.name)] == [planned.id]
    assert await events(rotation, Event.ROTATION_FAILED)
    assert await events(rotation, Event.ROTATION_NEEDS_PERSON) == []


async def test_a_run_that_is_suspended_stops_at_its_next_step_and_can_be_resumed(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """The worker polls for all its runs at once, without a subscription to events for each."""
    began, go_on, steps = threading.Event(), threading.Event(), []

    @task(persist_result=False)
    async def step(name: str) -> None:
        steps.append(name)

    @flow(persist_result=False)
    async def suspended() -> None:
        began.set()
        await asyncio.to_thread(go_on.wait)
        await step("next")

    async with KeyRotationWorker("suspended", prefetch_seconds=0) as worker:
        run_id = await start_flow(suspended, "suspended")
        await worker.get_and_submit_flow_runs()
        await running(began)
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Suspended(timeout_seconds=600))
            await worker.get_and_submit_flow_runs()
            go_on.set()
            while worker._attempts:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(POLL_SECONDS)

            assert (await client.read_flow_run(run_id)).state_name == "Suspended"
            assert steps == []
            await client.resume_flow_run(run_id)
        await worker.get_and_submit_flow_runs()
        assert (await ended(run_id)).state_name == "Completed"
    assert steps == ["next"]


async def test_a_worker_that_is_left_ends_the_runs_in_hand(services: Services, start_flow: Callable[..., Any]) -> None:
    """Whatever ends the worker, it completes the runs that it has taken."""
    began, go_on = threading.Event(), threading.Event()

    @flow(persist_result=False)
    async def slow() -> None:
        began.set()
        await asyncio.to_thread(go_on.wait)

    async def work() -> None:
        async with at_work("left"):
            await asyncio.sleep(HELD_SECONDS)

    at_its_end = asyncio.create_task(work())
    run_id = await start_flow(slow, "left")
    await running(began)
    at_its_end.cancel()
    await asyncio.sleep(1)
    assert not at_its_end.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await at_its_end

    assert (await ended(run_id)).state_name == "Completed"


async def test_at_sigterm_the_run_in_hand_ends_and_none_is_taken(services: Services) -> None:
    """The worker stops by itself, and runs that are due meanwhile are left to another worker."""
    pool = "drained"
    await deploy_to(pool)
    worker = services.stack.start_worker(pool, pool=pool)
    rotation, later = [
        await services.prepare(services.rotation(destinations=[f"vault-secret/{pool}-{i}"])) for i in range(2)
    ]
    at_vault = services.vault_app.state.faults.add(Fault("before", "GET", "/data/", status=0, delay=HELD_SECONDS))
    in_hand = await start(rotation, deployment_name=pool)
    await until_held(at_vault)

    os.kill(worker.pid, signal.SIGTERM)
    await asyncio.sleep(1)
    left = await start(later, deployment_name=pool)
    await asyncio.sleep(3)
    assert worker.popen.poll() is None
    at_vault.delay = 0
    done = await ended(in_hand)
    # While it stops, it still sends logs and events, repeatedly if a busy database rejects them.
    await asyncio.to_thread(worker.popen.wait, 120)

    assert done.state_name == "Completed", message(done)
    async with get_client() as client:
        assert (await client.read_flow_run(left)).state_name in {"Scheduled", "Late"}
    async with at_work(pool):
        assert (await ended(left)).state_name == "Completed"
    await check_converged(services, rotation)


async def test_after_a_kill_of_the_worker_a_retry_finishes_the_same_rotation(services: Services) -> None:
    """All runs die with their worker; after a Retry of each by the next worker, no orphan is left."""
    pool = "killed-with-its-runs"
    await deploy_to(pool)
    worker = services.stack.start_worker(pool, pool=pool)
    rotations = [await services.prepare(services.rotation(destinations=[f"vault-secret/{pool}-{i}"])) for i in range(2)]
    published = services.vault_app.state.faults.add(Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS))
    run_ids = []
    for rotation in rotations:
        run_ids.append(await start(rotation, deployment_name=pool))
        await until_held(published)
        published.struck = 0

    os.killpg(worker.pid, signal.SIGKILL)
    published.delay = 0
    healed = await retry_after_death(run_ids[0], rotations[0].name)
    assert healed.is_completed()
    await give_the_slot_back(rotations[1].name)
    async with get_client() as client:
        await client.set_flow_run_state(run_ids[1], Crashed(message="Its worker died."))
    async with at_work(pool):
        await retry(run_ids[1])
        again = await ended(run_ids[1], attempt=2)

    assert again.state_name == "Completed", message(again)
    assert len(services.openrouter.created) == 2
    for rotation in rotations:
        await check_converged(services, rotation)
    check_nothing_leaked(services)
