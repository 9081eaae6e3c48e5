"""How a worker handles runs whose process has died, whatever Prefect's API answers meanwhile."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
from httpx import HTTPStatusError, Request, Response
from prefect import State
from prefect.client.schemas.objects import Flow, FlowRun, StateDetails
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Pending, Running

from blocks.errors import ServiceError
from flows import abandoned
from tests.prefect_client import client_with


def server(*runs: FlowRun, ahead: timedelta = timedelta(0), last_heartbeat: datetime | None = None) -> Any:
    """Return a client whose server lists runs and has events of others; this host's clock is ahead of the server's.

    The last heartbeat of each listed run occurred at no time that the server would look for.
    """
    date = format_datetime(datetime.now(UTC) - ahead, usegmt=True)

    async def answer(_method: str, path: str, **sent: Any) -> Response:
        if path == "/events/filter":
            return Response(200, json={"events": [{"received": last_heartbeat.isoformat()}] if last_heartbeat else []})
        if path == "/flow_runs/filter":
            start, asked = sent["json"]["offset"], sent["json"]["limit"]
            kinds = sent["json"]["flow_runs"]["state"]["type"]["any_"]
            found = [run for run in runs if run.state is None or run.state.type in kinds]
            page = found[start : start + min(asked, 200)]
            return Response(200, headers={"Date": date}, json=[run.model_dump(mode="json") for run in page])
        return Response(200, json=[{"value": f"prefect.flow-run.{uuid4()}"}])

    client = client_with("request", "read_flow", "set_flow_run_state")
    client.request.side_effect = answer
    return client


def states_set(client: Any) -> list[str]:
    """Return the names of the states into which the worker has put runs."""
    return [call.args[1].name for call in client.set_flow_run_state.await_args_list]


async def tries_asked_for(monkeypatch: pytest.MonkeyPatch, *outcomes: ServiceError | None) -> int:
    """Poll three times for a crashed run whose tries are scheduled with these outcomes, and count the requests."""
    try_again = AsyncMock(side_effect=outcomes)
    monkeypatch.setattr(abandoned, "try_again", try_again)
    client = server(FlowRun(flow_id=uuid4(), name="rotate checkout"))
    client.read_flow.return_value = Flow(name="rotate", labels={})
    looks = abandoned.Abandoned(client, "key-rotation")
    for _ in range(3):
        await looks.try_again()
    return try_again.await_count


async def test_a_try_that_could_not_be_scheduled_is_scheduled_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary failure of Prefect's API does not end the worker, and a crashed run gets exactly one try."""
    away = ServiceError("Prefect's API failed.", retryable=True)

    assert await tries_asked_for(monkeypatch, away, None) == 2


async def test_a_crashed_run_of_which_no_try_can_be_scheduled_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's API would refuse the same at each poll, for a day."""
    refused_for_good = ServiceError("Prefect's API failed.")

    assert await tries_asked_for(monkeypatch, refused_for_good) == 1


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
        await abandoned.Abandoned(client, "key-rotation").mark_crashed(in_hand=())

    assert states_set(client) == ["Crashed"] * is_dead


async def test_a_dead_run_is_found_among_more_than_a_page_of_runs() -> None:
    """The server lists 200 runs at once."""
    now = datetime.now(UTC)
    runs = [FlowRun(flow_id=uuid4(), start_time=now, state=Running(timestamp=now)) for _ in range(450)]
    dead = FlowRun(flow_id=uuid4(), start_time=now, state=Running(timestamp=now - timedelta(minutes=5)))
    client = server(*runs, dead)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(client, "key-rotation").mark_crashed(in_hand=())

    assert states_set(client) == ["Crashed"]


@pytest.mark.parametrize("ahead", [timedelta(minutes=-10), timedelta(minutes=10)], ids=["behind", "ahead"])
@pytest.mark.parametrize(("minutes", "put_into"), [(0.5, []), (5, ["Crashed", "Crashed"])])
async def test_runs_are_judged_by_the_servers_clock(ahead: timedelta, minutes: float, put_into: list[str]) -> None:
    """With a wrong clock, a worker neither marks another worker's live run as crashed, nor misses a dead one."""
    since = datetime.now(UTC) - ahead - timedelta(minutes=minutes)
    taken = server(FlowRun(flow_id=uuid4(), state=Pending(timestamp=since)), ahead=ahead)
    running = server(FlowRun(flow_id=uuid4(), start_time=since, state=Running(timestamp=since)), ahead=ahead)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(taken, "key-rotation").mark_not_begun(in_hand=())
        await abandoned.Abandoned(running, "key-rotation").mark_crashed(in_hand=())

    assert states_set(taken) + states_set(running) == put_into


@pytest.mark.parametrize(("minutes", "put_into"), [(0.5, []), (5, ["Crashed"])])
async def test_a_run_is_heard_although_its_hosts_clock_is_wrong(minutes: float, put_into: list[str]) -> None:
    """The time at which the server received the last heartbeat counts, not the sender's own time in it."""
    now = datetime.now(UTC)
    begun = now - timedelta(hours=1)
    run = FlowRun(flow_id=uuid4(), start_time=begun, state=Running(timestamp=begun))
    client = server(run, last_heartbeat=now - timedelta(minutes=minutes))

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(client, "key-rotation").mark_crashed(in_hand=())

    assert states_set(client) == put_into


@pytest.mark.parametrize(("minutes", "put_into"), [(-3, []), (1, []), (3, ["Crashed"])])
async def test_a_run_that_was_taken_too_early_is_left_until_its_time_has_passed(
    minutes: float, put_into: list[str]
) -> None:
    """A worker whose clock is ahead holds it until the server lets it begin; another worker must not begin it twice."""
    now = datetime.now(UTC)
    details = StateDetails(scheduled_time=now - timedelta(minutes=minutes))
    taken: State[Any] = Pending(timestamp=now - timedelta(minutes=10), state_details=details)
    client = server(FlowRun(flow_id=uuid4(), state=taken))

    await abandoned.Abandoned(client, "key-rotation").mark_not_begun(in_hand=())

    assert states_set(client) == put_into


def refused(status: int, path: str) -> HTTPStatusError:
    """Return the error that Prefect's client raises for such an answer."""
    request = Request("POST", f"http://127.0.0.1/api{path}")
    return HTTPStatusError("", request=request, response=Response(status, request=request))


@pytest.mark.parametrize("status", [403, 404, 429, 503])
@pytest.mark.parametrize("path", ["/events/count-by/{countable}", "/events/filter", "/flow_runs/filter"])
async def test_a_refused_question_is_a_warning_and_does_not_end_the_worker(
    status: int, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect ends a worker whose heartbeat raises such an error, although its runs could go on."""
    begun = datetime.now(UTC) - timedelta(hours=1)
    client = server(FlowRun(flow_id=uuid4(), start_time=begun, state=Running(timestamp=begun)))
    answer = client.request.side_effect

    async def refuse(method: str, asked: str, **sent: Any) -> Response:
        if asked == path:
            raise refused(status, path)
        found: Response = await answer(method, asked, **sent)
        return found

    client.request.side_effect = refuse
    client.read_flow.return_value = Flow(name="add-rotation", labels={})
    # Prefect's own loggers do not propagate.
    monkeypatch.setattr(abandoned, "LOGGER", logging.getLogger("abandoned"))
    looks = abandoned.Abandoned(client, "key-rotation")

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await looks.mark_not_begun(in_hand=())
        await looks.mark_crashed(in_hand=())
        await looks.try_again()

    assert states_set(client) == []
    assert "Prefect's API failed while looking for runs" in caplog.text


async def test_a_run_whose_state_is_refused_does_not_keep_the_others_waiting() -> None:
    """The worker goes on with the next run."""
    taken = [FlowRun(flow_id=uuid4(), state=Pending(timestamp=datetime.now(UTC) - timedelta(hours=1))) for _ in "ab"]
    client = server(*taken)
    client.set_flow_run_state.side_effect = refused(403, "/flow_runs/{id}/set_state")

    await abandoned.Abandoned(client, "key-rotation").mark_not_begun(in_hand=())

    assert states_set(client) == ["Crashed", "Crashed"]


@pytest.mark.parametrize("date", ["Mon, 30 Nov 2026 04:10:05 -0000", "soon", "", None])
@pytest.mark.parametrize(("minutes", "put_into"), [(0.5, []), (5, ["Crashed"])])
async def test_where_no_server_time_is_told_this_hosts_clock_counts(
    date: str | None, minutes: float, put_into: list[str]
) -> None:
    """A proxy may remove the header, or write one without a zone, which cannot be compared."""
    taken = FlowRun(flow_id=uuid4(), state=Pending(timestamp=datetime.now(UTC) - timedelta(minutes=minutes)))
    client = server(taken)
    headers = {} if date is None else {"Date": date}
    client.request.side_effect = AsyncMock(
        return_value=Response(200, headers=headers, json=[taken.model_dump(mode="json")])
    )

    await abandoned.Abandoned(client, "key-rotation").mark_not_begun(in_hand=())

    assert states_set(client) == put_into
