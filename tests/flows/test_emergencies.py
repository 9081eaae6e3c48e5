"""How a worker finds the emergencies among the due runs of its pool."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, WorkPool, WorkQueue
from prefect.exceptions import ObjectNotFound

from flows.clock import ServerClock
from flows.emergencies import FEW, MOST_LISTED, MOST_REMEMBERED, DueEmergencies

QUEUE = uuid4()
POOL = WorkPool(name="pool", type="key-rotation", default_queue_id=QUEUE)


def ordinary_runs(number: int) -> list[FlowRun]:
    """Return runs that are no emergencies."""
    return [FlowRun(flow_id=uuid4(), name=f"rotate {each}", work_queue_id=QUEUE) for each in range(number)]


def an_emergency(name: str = "emergency a") -> FlowRun:
    """Return an emergency."""
    return FlowRun(flow_id=uuid4(), name=name, parameters={"emergency": True}, work_queue_id=QUEUE)


class Server:
    """A server's due runs, the newest first, and a record of how many it has listed."""

    def __init__(self, *runs: FlowRun) -> None:
        self.runs = list(runs)
        self.listed = 0
        self.queue: WorkQueue | None = WorkQueue(name="default", work_pool_id=uuid4())

    async def read_flow_runs(self, *, flow_run_filter: FlowRunFilter, limit: int, **_: Any) -> list[FlowRun]:
        """Return the first runs of those that match."""
        like = (flow_run_filter.name.like_ if flow_run_filter.name else "") or ""
        known = (flow_run_filter.id.not_any_ if flow_run_filter.id else []) or []
        found = [run for run in self.runs if like in run.name and run.id not in known][:limit]
        self.listed += len(found)
        return found

    async def read_work_queue(self, _queue_id: UUID) -> WorkQueue:
        """Return the queue, unless a person has deleted it."""
        if self.queue is None:
            raise ObjectNotFound(http_exc=Exception("404"))
        return self.queue


async def found(emergencies: DueEmergencies, server: Server, pool: WorkPool = POOL) -> list[FlowRun]:
    """Return the emergencies that a look finds."""
    return [each.flow_run for each in await emergencies.find(cast("PrefectClient", server), pool, ())]


@pytest.fixture
def emergencies() -> DueEmergencies:
    """A worker that has not looked yet."""
    return DueEmergencies(ServerClock())


async def test_an_emergency_that_is_retried_is_found_among_many_newer_runs(emergencies: DueEmergencies) -> None:
    """Its expected start stays that of its first attempt, so newer runs are listed first."""
    retried = an_emergency()

    assert await found(emergencies, Server(*ordinary_runs(200), retried)) == [retried]


async def test_a_run_that_waits_is_listed_once_while_many_are_due(emergencies: DueEmergencies) -> None:
    """To list them at every look would cost the server as much as to execute them."""
    server = Server(*ordinary_runs(120))

    for _ in range(20):
        await found(emergencies, server)

    assert server.listed == 120


async def test_an_emergency_is_listed_until_it_is_taken(emergencies: DueEmergencies) -> None:
    """A worker without a free slot finds it again at its next look, however many runs it has listed before."""
    new, server = an_emergency("quick-fox"), Server(*ordinary_runs(2 * MOST_LISTED))
    await found(emergencies, server)
    server.runs.insert(0, new)

    assert [await found(emergencies, server) for _ in range(3)] == [[new]] * 3


async def test_an_emergency_behind_many_newer_runs_is_found_while_they_wait(emergencies: DueEmergencies) -> None:
    """Each look lists further runs, so it is found before a worker would have executed the newer ones."""
    hidden = an_emergency("quick-fox")
    server = Server(*ordinary_runs(3 * MOST_LISTED), hidden)

    looks = [await found(emergencies, server) for _ in range(4)]

    assert looks == [[], [], [], [hidden]]


async def test_of_more_runs_than_can_be_remembered_few_are_listed_again(emergencies: DueEmergencies) -> None:
    """A request must not grow without bound, and a new emergency is still found at the next look."""
    server, new = Server(*ordinary_runs(2 * MOST_REMEMBERED)), an_emergency("quick-fox")
    for _ in range(MOST_REMEMBERED // MOST_LISTED):
        await found(emergencies, server)
    server.listed = 0

    for _ in range(20):
        assert await found(emergencies, server) == []
    listed = server.listed
    server.runs.insert(0, new)

    assert await found(emergencies, server) == [new]
    assert listed == 20 * FEW
    assert len(emergencies._ordinary) == MOST_REMEMBERED


async def test_once_few_runs_are_due_nothing_is_remembered(emergencies: DueEmergencies) -> None:
    """An idle worker does not send a list of runs that ended long ago."""
    server = Server(*ordinary_runs(3))
    await found(emergencies, server)

    emergencies.forget()
    await found(emergencies, server)

    assert server.listed == 6


@pytest.mark.parametrize(
    ("pool", "queue"), [({"is_paused": True}, {}), ({"concurrency_limit": 1}, {}), ({}, {"is_paused": True})]
)
async def test_an_emergency_overtakes_nobody_in_a_paused_or_limited_queue(
    emergencies: DueEmergencies, pool: dict[str, Any], queue: dict[str, Any]
) -> None:
    """Emergencies respect the pause and the concurrency limits of pools and queues."""
    server = Server(an_emergency())
    server.queue = WorkQueue(name="default", work_pool_id=uuid4(), **queue)

    assert await found(emergencies, server, POOL.model_copy(update=pool)) == []


async def test_a_queue_that_is_deleted_under_an_emergency_does_not_end_the_worker(emergencies: DueEmergencies) -> None:
    """The emergency waits like any other run."""
    server = Server(an_emergency())
    server.queue = None

    assert await found(emergencies, server) == []
