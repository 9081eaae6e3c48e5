"""The worker type `key-rotation`: what its runs share, what is separate, and how it starts and stops.

A test with flows of its own uses a worker in this process; a test about the process uses one in its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, get_client, get_run_logger
from prefect.blocks.abstract import SecretBlock
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from blocks.http import JsonHttp
from flows import rotate
from flows.attempts import Attempt
from flows.worker import KeyRotationWorker
from sandbox.server import Fault
from tasks.world.destinations import AnySecretBlock
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import cancel, deploy_to, ended, start
from tests.e2e.in_process import STARTED_WITHIN, at_work, log_of, message, pause, running
from tests.e2e.processes import HELD_SECONDS, check_converged, until_held
from tests.threads import Hanging

pytestmark = with_processes
secret: ContextVar[str] = ContextVar("secret", default="")


async def test_a_run_that_fails_blocks_or_is_cancelled_disturbs_no_other(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """A rotation completes beside a failed run, one that blocks its event loop, and a cancelled one."""
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
    rotation = await services.prepare(services.rotation())
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
    await check_converged(services, rotation)


async def test_a_call_that_never_returns_keeps_no_place(
    services: Services,
    start_flow: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a worker with a limit of one, and a run whose destination hangs in a blocking call, the next run starts."""
    monkeypatch.setattr("tasks.world.destinations.CALL_TIMEOUT_SECONDS", 0.1)

    class Unanswered(SecretBlock):
        def read_secret(self) -> bytes:  # type: ignore[override]
            return hanging()

        def write_secret(self, secret_data: bytes) -> str:  # type: ignore[override]
            raise AssertionError("nothing is written")

    @flow(persist_result=False)
    async def reading() -> None:
        await AnySecretBlock("unanswered/checkout", Unanswered()).read_content()

    @flow(persist_result=False)
    async def following() -> None:
        pass

    pool = "left-hanging"
    with Hanging() as hanging:
        async with at_work(pool, limit=1):
            given_up = await ended(await start_flow(reading, pool))
            next_one = await ended(await start_flow(following, pool))

            assert "could not be read (TimeoutError)" in message(given_up)
            assert next_one.state_name == "Completed", message(next_one)
            assert hanging.thread is not None
            assert hanging.thread.is_alive()


async def test_a_name_that_is_looked_up_for_ever_keeps_no_place(
    services: Services,
    start_flow: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a limit of one, and a run whose service's name is looked up without an end, the next run starts."""
    known = socket.getaddrinfo

    @flow(persist_result=False)
    async def calling() -> None:
        async with JsonHttp("OpenRouter", "https://openrouter.example") as http:
            await http.request("GET", "key", doing="asking for the key", headers={}, attempts=1)

    @flow(persist_result=False)
    async def following() -> None:
        pass

    pool = "looking-up"
    with Hanging() as hanging:
        monkeypatch.setattr(
            "socket.getaddrinfo",
            lambda host, *how, **more: hanging() if "openrouter" in str(host) else known(host, *how, **more),
        )
        async with at_work(pool, limit=1):
            given_up = await ended(await start_flow(calling, pool))
            next_one = await ended(await start_flow(following, pool))

            assert given_up.state_name == "Failed"
            assert next_one.state_name == "Completed", message(next_one)
            assert hanging.thread is not None
            assert hanging.thread.is_alive()


async def test_runs_share_no_context_and_each_has_its_own_log(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """Two concurrent runs: neither sees the other's context variables, and neither log has the other's records."""
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
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """The run fails with the reason, and executes nothing; environment variables are refused in the same way."""
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
        "A worker of the type key-rotation runs the flows of this package only, not flows.test:foreign:"
    )
    assert message(with_env).startswith("A worker of the type key-rotation has one environment for all its runs")
    assert begun == []
    assert not any("Traceback" in line for line in await log_of(unknown.id))


async def test_a_queue_of_a_higher_priority_goes_first(services: Services, start_flow: Callable[..., Any]) -> None:
    """With a limit of one, a run of the queue with priority is taken before an earlier run of the other queue."""
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
    services: Services, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without heartbeats, the automation for crashed runs would not notice a dead worker."""
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


async def test_an_emergency_waits_neither_for_a_place_nor_for_what_is_queued(services: Services) -> None:
    """Although the only place is taken and other runs are queued, an emergency from the dashboard starts at once."""
    pool = "full-house"
    await deploy_to(pool)
    ordinary = [await services.prepare(services.rotation(destinations=[f"vault-secret/{pool}-{i}"])) for i in range(3)]
    stolen = await services.prepare(services.rotation())
    assert (await rotate(stolen, return_state=True)).is_completed()
    at_vault = services.vault_app.state.faults.add(Fault("before", "GET", "/data/", status=0, delay=HELD_SECONDS))

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
    await check_converged(services, stolen)


async def test_a_paused_pool_or_queue_holds_emergencies_too(services: Services) -> None:
    """Whoever pauses a pool must be able to rely on it."""
    pool = "paused"
    await deploy_to(pool)
    stolen = await services.prepare(services.rotation())
    async with KeyRotationWorker(pool, limit=1, prefetch_seconds=0) as worker:
        await pause(pool, True)
        run_id = await start(stolen, emergency=True, deployment_name=pool)
        await worker.limiter.acquire_on_behalf_of(uuid4())
        assert await worker.get_and_submit_flow_runs() == []
        await pause(pool, False)
        assert [run.id for run in await worker.get_and_submit_flow_runs()] == [run_id]
        assert (await ended(run_id)).state_name == "Completed"
