"""The worker type `key-rotation`: what its runs share, what they do not, and how it begins and ends.

Where a test needs flows of its own, the worker is one of this process; where the process matters, it is one of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from prefect import Flow, flow, get_client, get_run_logger, task
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Crashed, Pending, Running, Suspended

from flows import rotate
from flows.attempts import Attempt
from flows.worker import FLOWS, KeyRotationWorker
from sandbox.server import Fault
from sandbox.stack import WORKER_TYPE
from tasks.model.tries import RUN
from tasks.world.tries import TRY_TAG
from tests.e2e.conftest import World, with_processes
from tests.e2e.driver import cancel, deploy_to, ended, retry, start
from tests.e2e.processes import (
    HELD_SECONDS,
    check_converged,
    check_nothing_leaked,
    give_the_slot_back,
    retry_after_death,
    until_held,
)

pytestmark = with_processes

STARTED_WITHIN = 200.0
POLL_SECONDS = 0.1
secret: ContextVar[str] = ContextVar("secret", default="")


@asynccontextmanager
async def at_work(pool: str, limit: int = 20) -> AsyncIterator[KeyRotationWorker]:
    """A worker in this process, which drains when it is left."""

    async def poll(worker: KeyRotationWorker) -> None:
        while True:
            await worker.get_and_submit_flow_runs()
            await asyncio.sleep(POLL_SECONDS)

    async with KeyRotationWorker(pool, limit=limit, prefetch_seconds=0) as worker:
        polling = asyncio.create_task(poll(worker))
        try:
            yield worker
        finally:
            polling.cancel()


@pytest.fixture
def start_flow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start a run of a flow of the test, which the worker takes for one of the package."""

    async def begin(what: Flow[..., Any], pool: str, *, known: bool = True, **more: Any) -> UUID:
        entrypoint = f"flows.test:{what.fn.__name__}"
        if known:
            monkeypatch.setitem(FLOWS, entrypoint, what)
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=pool, type=WORKER_TYPE), overwrite=True)
            deployment = await client.create_deployment(
                await client.create_flow(what), pool, work_pool_name=pool, entrypoint=entrypoint, pull_steps=[], **more
            )
            return (await client.create_flow_run_from_deployment(deployment)).id

    return begin


async def log_of(run_id: UUID) -> list[str]:
    """What the server has stored as a run's log."""
    await APILogHandler.aflush()
    async with get_client() as client:
        found = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
    return [entry.message for entry in found]


def message(run: FlowRun) -> str:
    """The message of a run's state."""
    return str(run.state.message if run.state else "")


async def pause(pool: str, is_paused: bool) -> None:
    """Pause a pool's only queue, or go on with it."""
    async with get_client() as client:
        queue = await client.read_work_queue_by_name("default", work_pool_name=pool)
        await client.update_work_queue(queue.id, is_paused=is_paused)


async def running(event: threading.Event) -> None:
    """Wait until a flow of a test has begun."""
    assert await asyncio.to_thread(event.wait, STARTED_WITHIN), "the run never began"


async def test_a_run_that_fails_blocks_or_is_cancelled_disturbs_no_other(
    world: World, start_flow: Callable[..., Any]
) -> None:
    """Beside a run that failed, one that blocks its event loop and one that is cancelled, a rotation completes."""
    blocks, waits, go_on = threading.Event(), threading.Event(), threading.Event()

    @flow(persist_result=False)
    async def failing() -> None:
        raise ValueError("it does")

    @flow(persist_result=False)
    async def blocking() -> None:
        blocks.set()
        go_on.wait()

    @flow(persist_result=False)
    async def waiting() -> None:
        waits.set()
        await asyncio.sleep(HELD_SECONDS)

    pool = "undisturbed"
    await deploy_to(pool)
    rotation = await world.prepare(world.rotation())
    try:
        async with at_work(pool):
            failed, blocked, waited = [await start_flow(what, pool) for what in (failing, blocking, waiting)]
            await running(blocks)
            await running(waits)
            assert (await ended(failed)).state_name == "Failed"

            await cancel(waited)
            cancelled = await ended(waited)
            rotated = await ended(await start(rotation, deployment_name=pool))

            assert cancelled.state_name == "Cancelled"
            assert rotated.state_name == "Completed", message(rotated)
            go_on.set()
            assert (await ended(blocked)).state_name == "Completed"
    finally:
        go_on.set()
    await check_converged(world, rotation)


async def test_runs_share_no_context_and_each_has_its_own_log(world: World, start_flow: Callable[..., Any]) -> None:
    """Two runs at one time: what one puts into its context the other does not see, nor does its log appear there."""
    together = threading.Barrier(2, timeout=STARTED_WITHIN)
    seen: dict[str, str] = {}

    async def careful(name: str) -> None:
        secret.set(name)
        await asyncio.to_thread(together.wait)
        seen[name] = secret.get()
        get_run_logger().info("this is %s", name)
        await asyncio.to_thread(together.wait)

    @flow(persist_result=False)
    async def first() -> None:
        await careful("first")

    @flow(persist_result=False)
    async def second() -> None:
        await careful("second")

    async with at_work("apart"):
        run_ids = [await start_flow(what, "apart") for what in (first, second)]
        done = [await ended(run_id) for run_id in run_ids]

    assert [run.state_name for run in done] == ["Completed", "Completed"]
    assert seen == {"first": "first", "second": "second"}
    assert secret.get() == ""
    logs = [await log_of(run_id) for run_id in run_ids]
    assert [[line for line in log if line.startswith("this is")] for log in logs] == [
        ["this is first"],
        ["this is second"],
    ]


async def test_what_is_no_flow_of_this_package_is_refused_in_one_sentence(
    world: World, start_flow: Callable[..., Any]
) -> None:
    """The run fails, says why, and nothing of it was run; the same for environment variables."""
    begun: list[str] = []

    @flow(persist_result=False)
    async def foreign() -> None:
        begun.append("foreign")

    async with at_work("refused"):
        unknown = await ended(await start_flow(foreign, "refused", known=False), attempt=0)
        run_id = await start_flow(foreign, "refused", job_variables={"env": {"A": "b"}})
        with_env = await ended(run_id, attempt=0)

    assert (unknown.state_name, with_env.state_name) == ("Failed", "Failed")
    assert message(unknown).startswith(
        "A worker of the type key-rotation runs the flows of this package only, and flows.test:foreign is none of them"
    )
    assert message(with_env).startswith("A worker of the type key-rotation has one environment for all its runs")
    assert begun == []
    assert not any("Traceback" in line for line in await log_of(unknown.id))


async def test_a_run_that_is_interrupted_and_not_cancelled_is_crashed(
    world: World, start_flow: Callable[..., Any]
) -> None:
    """Crashed and Cancelled stay apart, so that an automation for crashed runs is not told of a person's Cancel."""

    @flow(persist_result=False)
    async def interrupted() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(HELD_SECONDS)

    async with at_work("interrupted"):
        run = await ended(await start_flow(interrupted, "interrupted"))

    assert run.state_name == "Crashed"


async def test_a_queue_of_a_higher_priority_goes_first(world: World, start_flow: Callable[..., Any]) -> None:
    """With one place, what is due later in the better queue is taken before what is due earlier in the other."""
    pool, order = "priorities", []

    @flow(persist_result=False)
    async def noting() -> None:
        order.append(FlowRunContext.get().flow_run.id)  # type: ignore[union-attr] # a run has a context

    earlier = await start_flow(noting, pool)
    async with get_client() as client:
        await client.create_work_queue("better", work_pool_name=pool, priority=1)
        deployment = await client.read_deployment_by_name(f"noting/{pool}")
        later = (await client.create_flow_run_from_deployment(deployment.id, work_queue_name="better")).id

    async with at_work(pool, limit=1):
        for run_id in (earlier, later):
            assert (await ended(run_id)).state_name == "Completed"

    assert order == [later, earlier]


async def test_a_run_sends_heartbeats(
    world: World, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, the automation for crashed runs would not notice the death of a worker."""
    sent, came = [], threading.Event()
    emit = Attempt._emit_flow_run_heartbeat

    def note(attempt: Attempt, *event: Any) -> None:
        emit(attempt, *event)
        sent.append(attempt.flow_run.id if attempt.flow_run else None)
        came.set()

    @flow(persist_result=False)
    async def waiting() -> None:
        await asyncio.to_thread(came.wait, STARTED_WITHIN)

    monkeypatch.setattr(Attempt, "_emit_flow_run_heartbeat", note)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        async with at_work("alive"):
            run_id = await start_flow(waiting, "alive")
            assert (await ended(run_id)).state_name == "Completed"

    assert sent == [run_id]


async def test_a_run_that_some_worker_took_and_did_not_begin_is_taken_again(
    world: World, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was killed in between, or never heard that it had taken the run; one that is in hand is left alone."""
    monkeypatch.setattr("flows.abandoned.BEGUN_WITHIN", timedelta(0))
    began, go_on = threading.Event(), threading.Event()

    @flow(persist_result=False)
    async def held() -> None:
        began.set()
        await asyncio.to_thread(go_on.wait)

    async with KeyRotationWorker("lost", prefetch_seconds=0) as worker:
        run_id = await start_flow(held, "lost")
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Pending())
        assert await worker.get_and_submit_flow_runs() == []

        await worker.sync_with_backend()
        assert [run.id for run in await worker.get_and_submit_flow_runs()] == [run_id]
        await running(began)
        await worker.sync_with_backend()
        go_on.set()

        assert (await ended(run_id)).state_name == "Completed"


async def crashed_run(flow: Flow[..., Any], pool: str, start_flow: Callable[..., Any]) -> UUID:
    """A run whose process has died, in a pool without a worker."""
    run_id: UUID = await start_flow(flow, pool)
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Crashed(message="Its process died."), force=True)
    return run_id


async def tries_of(run_id: UUID) -> list[FlowRun]:
    """The runs that finish another one."""
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[TRY_TAG])))
    return [run for run in runs if run.labels.get(RUN) == str(run_id)]


async def test_a_crashed_run_is_tried_again_once_whoever_looks(world: World, start_flow: Callable[..., Any]) -> None:
    """Two workers find it, again and again, and one try is made, which is due at once."""

    @flow(persist_result=False)
    async def dies() -> None:
        """Complete, the second time."""

    run_id = await crashed_run(dies, "crashed", start_flow)
    async with KeyRotationWorker("crashed", prefetch_seconds=0) as one, KeyRotationWorker("crashed") as other:
        await asyncio.gather(*[worker.sync_with_backend() for worker in (one, other, one)])
        [attempt] = await tries_of(run_id)
        assert [run.id for run in await one.get_and_submit_flow_runs()] == [attempt.id]
        assert (await ended(attempt.id)).state_name == "Completed"

    async with KeyRotationWorker("crashed") as later:
        await later.sync_with_backend()
    assert len(await tries_of(run_id)) == 1


async def silent_run(pool: str, start_flow: Callable[..., Any]) -> UUID:
    """A run that is Running, has sent no heartbeat, and that nobody is at work on."""

    @flow(persist_result=False)
    async def silent() -> None:
        """Never begin."""

    run_id: UUID = await start_flow(silent, pool)
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Running(), force=True)
    return run_id


async def state_after_looks(run_id: UUID, pool: str, looks: int) -> str | None:
    """Let a worker look several times, while events arrive; the state in which the run is then."""
    async with KeyRotationWorker(pool) as worker, get_client() as client:
        for _ in range(looks):
            await worker.sync_with_backend()
            await asyncio.sleep(1)
        return (await client.read_flow_run(run_id)).state_name


async def test_a_run_without_heartbeats_is_marked_as_crashed_where_events_arrive(
    world: World, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever became of the automation; and where no event arrives, silence says nothing about a run."""
    monkeypatch.setattr("flows.abandoned.MISSED_HEARTBEATS", 0.1)
    run_id = await silent_run("silent", start_flow)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        with mock.patch("flows.abandoned.emit_event"):
            assert await state_after_looks(run_id, "silent", 5) == "Running"
        assert await state_after_looks(run_id, "silent", 10) == "Crashed"


async def test_an_order_that_crashed_is_not_tried_again(world: World, start_flow: Callable[..., Any]) -> None:
    """A person may have ordered something else since."""

    @flow(name="remove-rotation", persist_result=False)
    async def order() -> None:
        """Do what a person has ordered."""

    run_id = await crashed_run(order, "crashed-order", start_flow)

    async with KeyRotationWorker("crashed-order") as worker:
        await worker.sync_with_backend()

    assert await tries_of(run_id) == []


async def test_a_run_that_is_cancelled_before_it_begins_is_cancelled(
    world: World, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is another attempt, which Prefect's worker takes for one that has begun."""
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


async def test_a_run_that_is_suspended_stops_at_its_next_step_and_can_be_resumed(
    world: World, start_flow: Callable[..., Any]
) -> None:
    """The worker notices it for all its runs, without a subscription to events for each."""
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


async def test_a_worker_that_is_left_ends_the_runs_in_hand(world: World, start_flow: Callable[..., Any]) -> None:
    """However its own end comes, a run that was taken is run to its end."""
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


async def test_an_emergency_waits_neither_for_a_place_nor_for_what_is_queued(world: World) -> None:
    """With one place, taken, and others queued before it, an emergency from the dashboard is run at once."""
    pool = "full-house"
    await deploy_to(pool)
    ordinary = [await world.prepare(world.rotation(destinations=[f"vault-secret/{pool}-{i}"])) for i in range(3)]
    stolen = await world.prepare(world.rotation())
    assert (await rotate(stolen, return_state=True)).is_completed()
    at_vault = world.vault_app.state.faults.add(Fault("before", "GET", "/data/", status=0, delay=HELD_SECONDS))

    async with at_work(pool, limit=1):
        queued = [await start(rotation, deployment_name=pool) for rotation in ordinary]
        await until_held(at_vault)
        emergency = await ended(await start(stolen, emergency=True, deployment_name=pool))
        async with get_client() as client:
            others = [(await client.read_flow_run(run_id)).state_name for run_id in queued]
        at_vault.delay = 0
        done = [await ended(run_id) for run_id in queued]

    assert emergency.state_name == "Completed", message(emergency)
    assert sorted(str(name) for name in others) == ["Running", "Scheduled", "Scheduled"]
    assert [run.state_name for run in done] == ["Completed"] * 3
    await check_converged(world, stolen)


async def test_a_paused_pool_or_queue_holds_emergencies_too(world: World) -> None:
    """A person who has paused a pool finds it paused."""
    pool = "paused"
    await deploy_to(pool)
    stolen = await world.prepare(world.rotation())
    async with KeyRotationWorker(pool, limit=1, prefetch_seconds=0) as worker:
        await pause(pool, True)
        run_id = await start(stolen, emergency=True, deployment_name=pool)
        await worker.limiter.acquire_on_behalf_of("somebody")
        assert await worker.get_and_submit_flow_runs() == []
        await pause(pool, False)
        assert [run.id for run in await worker.get_and_submit_flow_runs()] == [run_id]
        assert (await ended(run_id)).state_name == "Completed"


async def test_at_sigterm_the_run_in_hand_ends_and_none_is_taken(world: World) -> None:
    """The process ends by itself; what came due meanwhile is left for another worker, which takes it."""
    pool = "drained"
    await deploy_to(pool)
    worker = world.stack.start_worker(pool, pool=pool)
    rotation, later = [await world.prepare(world.rotation(destinations=[f"vault-secret/{pool}-{i}"])) for i in range(2)]
    at_vault = world.vault_app.state.faults.add(Fault("before", "GET", "/data/", status=0, delay=HELD_SECONDS))
    in_hand = await start(rotation, deployment_name=pool)
    await until_held(at_vault)

    os.kill(worker.pid, signal.SIGTERM)
    await asyncio.sleep(1)
    left = await start(later, deployment_name=pool)
    await asyncio.sleep(3)
    assert worker.popen.poll() is None
    at_vault.delay = 0
    done = await ended(in_hand)
    await asyncio.to_thread(worker.popen.wait, 30)

    assert done.state_name == "Completed", message(done)
    async with get_client() as client:
        assert (await client.read_flow_run(left)).state_name in {"Scheduled", "Late"}
    async with at_work(pool):
        assert (await ended(left)).state_name == "Completed"
    await check_converged(world, rotation)


async def test_after_a_kill_of_the_worker_a_retry_finishes_the_same_rotation(world: World) -> None:
    """All runs die with their worker; each is retried as after any death, by the next worker, and no key is left."""
    pool = "killed-with-its-runs"
    await deploy_to(pool)
    worker = world.stack.start_worker(pool, pool=pool)
    rotations = [await world.prepare(world.rotation(destinations=[f"vault-secret/{pool}-{i}"])) for i in range(2)]
    published = world.vault_app.state.faults.add(Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS))
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
    assert len(world.openrouter.created) == 2
    for rotation in rotations:
        await check_converged(world, rotation)
    check_nothing_leaked(world)
