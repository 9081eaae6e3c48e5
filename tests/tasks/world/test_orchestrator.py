"""What a run schedules in Prefect when its own clock and the server's disagree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.states import Completed, Running

from tasks.world import orchestrator
from tasks.world.orchestrator import PrefectWorld
from tests.prefect_client import client_with

DUE = datetime(2026, 12, 17, 3, 30, tzinfo=UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


class Server:
    """The retirements of one rotation as Prefect stores them, with the server's clock."""

    def __init__(self) -> None:
        self.time = DUE - DAY
        self.runs: dict[str, FlowRun] = {}
        self.client = client_with("read_deployment_by_name", "create_flow_run_from_deployment")
        self.client.read_deployment_by_name.return_value = DeploymentResponse(
            id=uuid4(), flow_id=uuid4(), name="retire", labels={}
        )
        self.client.create_flow_run_from_deployment.side_effect = self._create

    async def _create(self, _deployment: Any, *, idempotency_key: str, state: State[Any], **_: Any) -> FlowRun:
        return self.runs.setdefault(idempotency_key, FlowRun(id=uuid4(), flow_id=uuid4(), state=state))

    async def run_until(self, end: datetime, is_due: Callable[[], bool]) -> int:
        """Start scheduled runs until the worker's clock says that the key is due; return their number."""
        for taken in range(100):
            to_come = [run for run in self.runs.values() if run.state and run.state.is_scheduled()]
            if not to_come or self.time > end or (taken and is_due()):
                return taken
            [run] = to_come
            assert run.state is not None
            self.time = max(self.time, run.state.state_details.scheduled_time or self.time)
            run.state = Running(timestamp=self.time)
            # A run reads the clock some seconds after its start, and schedules the next one after that.
            self.time += 2 * SECOND
            fields: dict[str, Any] = {"flow_run": run}
            with FlowRunContext.model_construct(**fields):
                world = PrefectWorld()
                self.time += SECOND
                if not is_due():
                    await world.schedule_retirement("checkout", DUE, even_if_cancelled=False)
            run.state = Completed()
        pytest.fail("runs make runs without end")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of this kind."""
    server = Server()
    monkeypatch.setattr(orchestrator, "get_or_create_client", lambda: (server.client, False))
    return server


@pytest.mark.parametrize("behind", [timedelta(0), 61 * SECOND, 5 * MINUTE, 3 * DAY], ids=str)
async def test_a_key_that_is_not_due_yet_for_a_clock_that_is_behind_takes_one_more_retirement(
    server: Server, behind: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server starts the first one at the end of the overlap, and the second once the worker's clock agrees."""
    monkeypatch.setattr(PrefectWorld, "now", lambda _: server.time - behind)
    await PrefectWorld().schedule_retirement("checkout", DUE, even_if_cancelled=False)

    taken = await server.run_until(DUE + 30 * DAY, lambda: server.time - behind >= DUE)

    assert taken == (2 if behind else 1)
    assert server.time - behind - DUE < 2 * MINUTE


async def test_a_clock_that_stands_still_costs_one_retirement_a_minute_at_most(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if it stands a second before the end of the overlap."""
    monkeypatch.setattr(PrefectWorld, "now", lambda _: DUE - SECOND)
    await PrefectWorld().schedule_retirement("checkout", DUE, even_if_cancelled=False)

    assert 2 < await server.run_until(DUE + 60 * MINUTE, lambda: False) <= 61


async def test_a_key_that_is_overdue_by_every_clock_takes_one_retirement_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that became due while its run was busy is not lost, although the moment has passed."""
    server.time = now = DUE + MINUTE
    monkeypatch.setattr(PrefectWorld, "now", lambda _: server.time)

    await PrefectWorld().schedule_retirement("checkout", DUE, even_if_cancelled=False)

    assert await server.run_until(DUE + DAY, lambda: True) == 1
    assert server.time - now < MINUTE


async def test_what_is_still_to_come_for_the_server_keeps_its_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker, with a correct clock, may take it."""
    monkeypatch.setattr(PrefectWorld, "now", lambda _: server.time - 5 * MINUTE)
    fields: dict[str, Any] = {"flow_run": FlowRun(flow_id=uuid4(), state=Running(timestamp=server.time))}

    with FlowRunContext.model_construct(**fields):
        await PrefectWorld().schedule_retirement("checkout", DUE, even_if_cancelled=False)

    [run] = server.runs.values()
    assert run.state is not None
    assert run.state.state_details.scheduled_time == DUE
