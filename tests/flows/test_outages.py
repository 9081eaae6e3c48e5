"""Odd answers of Prefect's API to a worker of the type `key-rotation`: it survives them, and goes on with its work."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

import httpx
import pytest
from anyio import CapacityLimiter
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import (
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.workers.base import BaseWorker

from flows.attempts import Attempt
from flows.outages import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Outages
from flows.worker import KeyRotationWorker
from tests.flows.test_worker import in_hand

HTML = "<html>We will be back soon</html>"
ODD: dict[str, httpx.Response | Exception] = {
    "a page instead of JSON": httpx.Response(200, text=HTML),
    "JSON of another kind": httpx.Response(200, json={"detail": "soon"}),
    "a login page": httpx.Response(302, headers={"Location": "/api/login"}),
    "a refused password": httpx.Response(401, json={}),
    "a proxy's refusal": httpx.Response(403, text=HTML),
    "a proxy that knows no such page": httpx.Response(404, text=HTML),
    "a limit of requests": httpx.Response(429, headers={"Retry-After": "1"}, json={}),
    "an error": httpx.Response(500, text=HTML),
    "no server": httpx.ConnectError("refused"),
}


class Server:
    """Answers each request oddly, except that for the states of a worker's runs.

    Args:
        odd: The odd answer, or the error of the connection.
        cancelled: The run that a person has cancelled.
    """

    def __init__(self, odd: httpx.Response | Exception, cancelled: UUID) -> None:
        self.odd: httpx.Response | Exception = odd
        self.cancelled = FlowRun(id=cancelled, flow_id=uuid4(), state=State(type=StateType.CANCELLING))
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        if b'"CANCELLING"' in request.content:
            return httpx.Response(200, json=[self.cancelled.model_dump(mode="json")])
        self.asked += 1
        if isinstance(self.odd, Exception):
            raise self.odd
        return httpx.Response(self.odd.status_code, headers=self.odd.headers, content=self.odd.content)


class Waits:
    """The waits of Prefect's client and of the worker, which take no time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        """Record a wait."""
        self.seconds.append(seconds)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """All waits of a test."""
    made = Waits()
    monkeypatch.setattr("anyio.sleep", made)
    return made


@pytest.fixture
async def cancelled() -> Attempt:
    """A run in the worker's hands."""
    return await in_hand()


@pytest.fixture
async def worker(
    cancelled: Attempt, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[KeyRotationWorker, Server]]:
    """A worker with a run in hand that a person has cancelled, and its server."""
    assert cancelled.flow_run is not None
    server = Server(httpx.Response(200, json=[]), cancelled.flow_run.id)
    settings: dict[str, Any] = {"transport": httpx.MockTransport(server)}
    made = KeyRotationWorker("pool")
    made._limiter = CapacityLimiter(made._limit or 0)
    made._attempts[cancelled.flow_run.id] = cancelled
    made._has_successfully_synced = made.is_setup = True
    with temporary_settings({PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False, PREFECT_LOGGING_TO_API_ENABLED: False}):
        async with PrefectClient("http://127.0.0.1:9/api", httpx_settings=settings) as client:
            monkeypatch.setattr(made, "_client", client)
            yield made, server


@pytest.mark.parametrize("odd", ODD)
async def test_no_answer_to_a_look_for_runs_ends_the_worker_or_delays_a_cancel(
    odd: str, worker: tuple[KeyRotationWorker, Server], cancelled: Attempt
) -> None:
    """Given a run that a person has cancelled, when a look for runs is answered oddly, then the run is cancelled."""
    made, server = worker
    server.odd = ODD[odd]

    assert await made.get_and_submit_flow_runs() == []

    assert server.asked > 0
    assert cancelled.is_cancelled


async def test_no_answer_to_a_look_for_cancelled_runs_ends_the_worker(worker: tuple[KeyRotationWorker, Server]) -> None:
    """Given a run in hand, when its state is answered with a page, then the worker goes on."""
    made, server = worker

    with mock.patch.object(server, "cancelled", mock.Mock(model_dump=lambda **_: HTML)):
        assert await made.get_and_submit_flow_runs() == []


@pytest.mark.parametrize("odd", ODD)
async def test_no_answer_to_a_heartbeat_ends_the_worker(
    odd: str, worker: tuple[KeyRotationWorker, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a worker at work, when its heartbeat is answered oddly, then it goes on."""
    made, server = worker
    server.odd = ODD[odd]

    async def send_heartbeat(each: KeyRotationWorker) -> None:
        await each.client.read_work_pool("pool")

    monkeypatch.setattr(BaseWorker, "sync_with_backend", send_heartbeat)

    await made.sync_with_backend()

    assert server.asked > 0


async def test_a_worker_that_is_refused_as_it_starts_ends(
    worker: tuple[KeyRotationWorker, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a wrong password, when a worker starts, then it ends at once, so that somebody notices."""
    made, server = worker
    made.is_setup, server.odd = False, ODD["a refused password"]

    async def send_heartbeat(each: KeyRotationWorker) -> None:
        await each.client.read_work_pool("pool")

    monkeypatch.setattr(BaseWorker, "sync_with_backend", send_heartbeat)

    with pytest.raises(httpx.HTTPStatusError, match="401"):
        await made.sync_with_backend()


async def test_a_server_that_stays_away_is_asked_less_and_less_often(
    worker: tuple[KeyRotationWorker, Server], waits: Waits
) -> None:
    """Given an outage, when the worker polls, then its pauses grow; a good answer ends them."""
    made, server = worker
    server.odd = ODD["an error"]
    for _ in range(8):
        await made.get_and_submit_flow_runs()
    assert waits.seconds == [FIRST_PAUSE_SECONDS, 1, 2, 4, 8, *[LONGEST_PAUSE_SECONDS] * 3]

    server.odd = httpx.Response(200, json=[])
    await made.get_and_submit_flow_runs()
    assert waits.seconds[8:] == []
    server.odd = ODD["an error"]
    await made.get_and_submit_flow_runs()

    assert waits.seconds[8:] == [FIRST_PAUSE_SECONDS]


async def test_a_worker_that_is_asked_to_wait_for_an_hour_waits_for_seconds(
    worker: tuple[KeyRotationWorker, Server], waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a proxy in maintenance, when it asks for an hour, then an emergency after its end is not an hour late."""
    made, server = worker
    monkeypatch.setattr(BaseWorker, "sync_with_backend", mock.AsyncMock())
    await made.sync_with_backend()
    server.odd = httpx.Response(503, headers={"Retry-After": "3600"}, text=HTML)

    await made.get_and_submit_flow_runs()

    assert server.asked > 1
    assert max(waits.seconds) < 10


async def test_a_refused_password_is_told_loudly_and_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Given a server that refuses the worker, when it polls for a minute, then the log says twice what to check."""
    outages, refusal = (
        Outages(logging.getLogger("worker")),
        httpx.Response(401, request=httpx.Request("GET", "http://a")),
    )
    with mock.patch("flows.outages.time.monotonic", side_effect=range(65)):
        for _ in range(65):
            with outages.survived("looking for runs"):
                refusal.raise_for_status()
            await outages.pause()

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "check the worker's PREFECT_API_URL and PREFECT_API_AUTH_STRING" in caplog.records[0].message


async def test_a_mistake_of_the_workers_own_is_not_taken_for_an_outage() -> None:
    """Given an error that no answer explains, when it is raised, then it ends the worker, and its traceback is seen."""
    with pytest.raises(RuntimeError), Outages(logging.getLogger("worker")).survived("looking for runs"):
        raise RuntimeError("already holding a token")
