"""A worker whose host's clock is wrong takes what is due by the clock of Prefect's server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from anyio import CapacityLimiter
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import WorkPool
from prefect.settings import PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings
from prefect.workers.base import BaseWorker

from flows.clock import COARSE, ServerClock
from flows.worker import KeyRotationWorker

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Clock(datetime):
    """The clock of a worker's host."""

    at = NOW

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return its time."""
        return cls.at.astimezone(tz)


class Server:
    """Lists no run, and notes for which time it was asked; its clock shows `at`."""

    def __init__(self) -> None:
        self.at = NOW
        self.asked_for: list[datetime] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        body = json.loads(request.content or b"{}")
        due = body.get("flow_runs", {}).get("next_scheduled_start_time") or {}
        if before := body.get("scheduled_before") or due.get("before_"):
            self.asked_for.append(datetime.fromisoformat(before))
        return httpx.Response(200, headers=dated(self.at), json=[])


def dated(at: datetime) -> dict[str, str]:
    """Return the header of an answer that is sent at a time."""
    return {"Date": format_datetime(at, usegmt=True)}


@pytest.fixture
async def worker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[KeyRotationWorker, Server]]:
    """A worker that has just started, and its server."""
    server, made = Server(), KeyRotationWorker("pool")
    made._limiter = CapacityLimiter(made._limit or 0)
    made._has_successfully_synced = True
    made._work_pool = WorkPool(name="pool", type="key-rotation", default_queue_id=uuid4())

    async def send_heartbeat(each: KeyRotationWorker) -> None:
        await each.client.request("GET", "/health")

    monkeypatch.setattr(BaseWorker, "sync_with_backend", send_heartbeat)
    monkeypatch.setattr("flows.clock.datetime", Clock)
    settings: dict[str, Any] = {"transport": httpx.MockTransport(server)}
    with temporary_settings({PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        async with PrefectClient("http://127.0.0.1:9/api", httpx_settings=settings) as client:
            monkeypatch.setattr(made, "_client", client)
            yield made, server


@pytest.mark.parametrize("wrong", [timedelta(minutes=5), timedelta(seconds=-90)], ids=["ahead", "behind"])
@pytest.mark.parametrize("places", [True, False], ids=["with free places", "with emergencies' places only"])
async def test_a_run_is_taken_when_it_is_due_by_the_servers_clock(
    places: bool, wrong: timedelta, worker: tuple[KeyRotationWorker, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a host whose clock is wrong, when its worker looks for runs, then it takes none early, and none late."""
    made, server = worker
    monkeypatch.setattr(Clock, "at", NOW + wrong)
    if not places:
        monkeypatch.setattr(made, "_free_slots", lambda: 0)

    await made.sync_with_backend()
    await made.get_and_submit_flow_runs()

    assert server.asked_for
    assert {due - NOW for due in server.asked_for} == {timedelta(0)}


async def test_a_clock_that_is_set_while_the_worker_runs_is_noticed(
    worker: tuple[KeyRotationWorker, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a host whose clock jumps, when its worker looks for runs a second time, then the server's time counts."""
    made, server = worker
    await made.sync_with_backend()
    for wrong in (timedelta(hours=1), timedelta(hours=-1)):
        monkeypatch.setattr(Clock, "at", NOW + wrong)
        await made.get_and_submit_flow_runs()
        server.asked_for.clear()
        await made.get_and_submit_flow_runs()

        assert {due - NOW for due in server.asked_for} == {timedelta(0)}


def test_the_right_clock_of_a_host_is_not_made_wrong_by_whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given clocks in step, when a header is as old as it may be, then an emergency is not found seconds later."""
    clock = ServerClock()
    monkeypatch.setattr("flows.clock.datetime", Clock)

    assert clock.note(httpx.Response(200, headers=dated(NOW - COARSE))) == NOW
    assert clock.note(httpx.Response(200, headers=dated(NOW))) == NOW


def test_of_many_coarse_headers_the_time_becomes_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a host that is ahead, when some answers have come, then the time is never ahead, and no second behind."""
    clock = ServerClock()
    monkeypatch.setattr("flows.clock.datetime", Clock)
    for tenths in range(30):
        at = NOW + tenths * SECOND / 10
        monkeypatch.setattr(Clock, "at", at + timedelta(minutes=5))
        told = clock.note(httpx.Response(200, headers=dated(at.replace(microsecond=0) - SECOND * (tenths < 15))))
        assert told <= at

    assert at - told < SECOND / 10


@pytest.mark.parametrize("date", ["Mon, 30 Nov 2026 04:10:05 -0000", "soon", "", None])
def test_where_no_header_tells_the_time_this_hosts_clock_counts(
    date: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a proxy that removes the header, or one without a zone, when it is noted, then nothing changes."""
    clock = ServerClock()
    monkeypatch.setattr("flows.clock.datetime", Clock)

    assert clock.note(httpx.Response(200, headers={"Date": date} if date is not None else {})) == NOW
