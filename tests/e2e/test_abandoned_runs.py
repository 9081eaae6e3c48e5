"""A run that no process works on is marked as crashed and tried again, by whichever worker notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from prefect import Flow, State, flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from flows.abandoned import Abandoned
from flows.worker import KeyRotationWorker
from tasks.model.tries import RUN
from tasks.world.tries import TRY_TAG
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import ended
from tests.e2e.in_process import running

pytestmark = with_processes


async def taken_run(flow: Flow[..., Any], pool: str, start_flow: Callable[..., Any]) -> UUID:
    """Return a run that a worker took and will never begin."""
    run_id: UUID = await start_flow(flow, pool)
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Pending())
    return run_id


@pytest.fixture
def found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find runs that were not begun without waiting: the server tells its time in whole seconds, once a second."""
    monkeypatch.setattr("flows.abandoned.BEGUN_WITHIN", timedelta(seconds=-3))


@pytest.mark.usefixtures("found_at_once")
async def test_a_run_that_some_worker_took_and_did_not_begin_is_tried_again(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """Its worker was killed in between, or never learned that it had taken the run; a run in hand is left alone."""
    began, go_on = threading.Event(), threading.Event()

    @flow(persist_result=False)
    async def held() -> None:
        began.set()
        await asyncio.to_thread(go_on.wait)

    async with KeyRotationWorker("lost", prefetch_seconds=0) as worker:
        run_id = await taken_run(held, "lost", start_flow)
        assert await worker.get_and_submit_flow_runs() == []

        await worker.sync_with_backend()
        [attempt] = await tries_of(run_id)
        assert [run.id for run in await worker.get_and_submit_flow_runs()] == [attempt.id]
        await running(began)
        await worker.sync_with_backend()
        go_on.set()

        assert (await ended(attempt.id)).state_name == "Completed"
    assert len(await tries_of(run_id)) == 1


@pytest.mark.usefixtures("found_at_once")
@pytest.mark.parametrize("end", [Completed(), Cancelled(), Failed()], ids=lambda end: str(end.name))
async def test_a_run_that_has_ended_since_it_was_listed_is_left_as_it_is(
    services: Services, start_flow: Callable[..., Any], end: State[Any]
) -> None:
    """Another worker has recovered it, or a person has cancelled it, while this one was held up."""

    @flow(persist_result=False)
    async def over() -> None:
        """Never start."""

    run_id = await taken_run(over, "overtaken", start_flow)
    async with get_client() as client:
        late = Abandoned(client, "overtaken")
        listed = await late._runs(StateType.PENDING)
        await client.set_flow_run_state(run_id, end)
        with mock.patch.object(late, "_runs", return_value=listed):
            await late.mark_not_begun(in_hand=())

        assert [run.id for run in listed[1]] == [run_id]
        assert (await client.read_flow_run(run_id)).state_name == end.name


async def crashed_run(flow: Flow[..., Any], pool: str, start_flow: Callable[..., Any]) -> UUID:
    """Return a run whose process has died, in a pool without a worker."""
    run_id: UUID = await start_flow(flow, pool)
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Crashed(message="Its process died."), force=True)
    return run_id


async def tries_of(run_id: UUID) -> list[FlowRun]:
    """Return the tries of a run."""
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[TRY_TAG])))
    return [run for run in runs if run.labels.get(RUN) == str(run_id)]


async def test_a_crashed_run_is_tried_again_once_whoever_looks(
    services: Services, start_flow: Callable[..., Any]
) -> None:
    """Two workers find it repeatedly, but only one try is scheduled, which is due at once."""

    @flow(persist_result=False)
    async def dies() -> None:
        """Complete; only the try ever executes this."""

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
    """Return a run that is Running, has sent no heartbeat, and that no process works on."""

    @flow(persist_result=False)
    async def silent() -> None:
        """Never start."""

    run_id: UUID = await start_flow(silent, pool)
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Running(), force=True)
    return run_id


async def state_after_looks(run_id: UUID, pool: str, looks: int) -> str | None:
    """Wait until a worker has polled several times while events arrive, and return the run's state."""
    async with KeyRotationWorker(pool) as worker, get_client() as client:
        for _ in range(looks):
            await worker.sync_with_backend()
            await asyncio.sleep(1)
        return (await client.read_flow_run(run_id)).state_name


async def test_a_run_without_heartbeats_is_marked_as_crashed_where_events_arrive(
    services: Services, start_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This does not depend on the automation; without any events, a missing heartbeat proves nothing."""
    monkeypatch.setattr("flows.abandoned.MISSED_HEARTBEATS", 0.1)
    run_id = await silent_run("silent", start_flow)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        with mock.patch("flows.abandoned.emit_event"):
            assert await state_after_looks(run_id, "silent", 5) == "Running"
        assert await state_after_looks(run_id, "silent", 10) == "Crashed"


async def test_an_order_that_crashed_is_not_tried_again(services: Services, start_flow: Callable[..., Any]) -> None:
    """A person may have requested something else since."""

    @flow(name="remove-rotation", persist_result=False)
    async def order() -> None:
        """Do what a person has requested."""

    run_id = await crashed_run(order, "crashed-order", start_flow)

    async with KeyRotationWorker("crashed-order") as worker:
        await worker.sync_with_backend()

    assert await tries_of(run_id) == []
