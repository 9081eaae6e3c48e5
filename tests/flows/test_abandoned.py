"""How a worker handles runs whose process has died, whatever Prefect's API answers meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from unittest.mock import AsyncMock, create_autospec
from uuid import uuid4

import pytest
from httpx import Response
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Pending, Running

from blocks.errors import ServiceError
from flows import abandoned


def server(*runs: FlowRun, ahead: timedelta = timedelta(0), last_heartbeat: datetime | None = None) -> Any:
    """Return a client whose server lists runs and has events of others; this host's clock is ahead of the server's.

    The last heartbeat of each listed run occurred at no time that the server would look for.
    """
    date = format_datetime(datetime.now(UTC) - ahead, usegmt=True)

    async def answer(_method: str, path: str, **_sent: Any) -> Response:
        if path == "/events/filter":
            return Response(200, json={"events": [{"received": last_heartbeat.isoformat()}] if last_heartbeat else []})
        if path == "/flow_runs/filter":
            return Response(200, headers={"Date": date}, json=[run.model_dump(mode="json") for run in runs])
        return Response(200, json=[{"value": f"prefect.flow-run.{uuid4()}"}])

    client = create_autospec(PrefectClient, instance=True)
    client.request.side_effect = answer
    return client


def states_set(client: Any) -> list[str]:
    """Return the names of the states into which the worker has put runs."""
    return [call.args[1].name for call in client.set_flow_run_state.await_args_list]


async def test_a_try_that_could_not_be_scheduled_is_scheduled_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary failure of Prefect's API does not end the worker, and a crashed run gets exactly one try."""
    away = ServiceError("Prefect's API failed.", retryable=True)
    try_again = AsyncMock(side_effect=[away, None])
    monkeypatch.setattr(abandoned, "try_again", try_again)
    client = server(FlowRun(flow_id=uuid4(), name="rotate checkout"))
    client.read_flow.return_value = Flow(name="rotate", labels={})
    looks = abandoned.Abandoned(client, "key-rotation")

    for _ in range(3):
        await looks.try_again()

    assert try_again.await_count == 2


@pytest.mark.parametrize(("running_for", "is_dead"), [(timedelta(seconds=5), False), (timedelta(minutes=5), True)])
async def test_a_retry_of_an_old_run_is_not_dead_before_its_first_heartbeat_arrives(
    running_for: timedelta, is_dead: bool
) -> None:
    """The run first started hours ago, but only the time since its present attempt started counts."""
    now = datetime.now(UTC)
    retried = FlowRun(
        flow_id=uuid4(), start_time=now - timedelta(hours=5), state=Running(timestamp=now - running_for), run_count=2
    )
    client = server(retried)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(client, "key-rotation").mark_the_silent(in_hand=())

    assert states_set(client) == ["Crashed"] * is_dead


@pytest.mark.parametrize("ahead", [timedelta(minutes=-10), timedelta(minutes=10)], ids=["behind", "ahead"])
@pytest.mark.parametrize(("minutes", "put_into"), [(0.5, []), (5, ["Scheduled", "Crashed"])])
async def test_runs_are_judged_by_the_servers_clock(ahead: timedelta, minutes: float, put_into: list[str]) -> None:
    """With a wrong clock, a worker neither marks another worker's live run as crashed, nor misses a dead one."""
    since = datetime.now(UTC) - ahead - timedelta(minutes=minutes)
    taken = server(FlowRun(flow_id=uuid4(), state=Pending(timestamp=since)), ahead=ahead)
    running = server(FlowRun(flow_id=uuid4(), start_time=since, state=Running(timestamp=since)), ahead=ahead)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(taken, "key-rotation").schedule_again(in_hand=())
        await abandoned.Abandoned(running, "key-rotation").mark_the_silent(in_hand=())

    assert states_set(taken) + states_set(running) == put_into


@pytest.mark.parametrize(("minutes", "put_into"), [(0.5, []), (5, ["Crashed"])])
async def test_a_run_is_heard_although_its_hosts_clock_is_wrong(minutes: float, put_into: list[str]) -> None:
    """The time at which the server received the last heartbeat counts, not the sender's own time in it."""
    now = datetime.now(UTC)
    begun = now - timedelta(hours=1)
    run = FlowRun(flow_id=uuid4(), start_time=begun, state=Running(timestamp=begun))
    client = server(run, last_heartbeat=now - timedelta(minutes=minutes))

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(client, "key-rotation").mark_the_silent(in_hand=())

    assert states_set(client) == put_into
