"""How many runs a worker of the type `key-rotation` takes, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anyio import CapacityLimiter
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.attempts import PATIENCE_SECONDS
from flows.worker import (
    ALWAYS,
    LIMIT,
    QUICK_LOOKS,
    RESERVED_FOR_EMERGENCIES,
    SLOW_SECONDS,
    KeyRotationWorker,
)
from tests.flows.test_worker import Tasks, due, run_of


def test_without_a_limit_twenty_ordinary_runs_are_in_hand_at_most() -> None:
    """Many due runs must not start as many threads."""
    assert KeyRotationWorker("pool")._limit == LIMIT + RESERVED_FOR_EMERGENCIES
    assert LIMIT == 20


class Looks:
    """Looks for runs of a worker: many are due, and the server takes some time to list them."""

    def __init__(self, worker: KeyRotationWorker, runs: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker, self.runs, self.now, self.takes = worker, runs, 0.0, 0.0
        self.wanted: list[int] = []
        monkeypatch.setattr("flows.worker.time", self)
        monkeypatch.setattr("flows.attempts.time", self)
        monkeypatch.setattr(worker, "_due", self.list_due)
        monkeypatch.setattr(worker, "_emergencies", self.list_emergencies)

    def monotonic(self) -> float:
        """Return the time of the worker's clock."""
        return self.now

    async def list_due(self, wanted: int) -> list[WorkerFlowRunResponse]:
        """Return as many runs as are wanted, after a while."""
        self.now += self.takes
        self.wanted.append(wanted)
        return due(*(run_of() for _ in range(wanted)))

    async def list_emergencies(self) -> list[WorkerFlowRunResponse]:
        """Return no run, after a while."""
        self.now += self.takes
        return []

    def end_runs(self) -> None:
        """End all runs that are in hand."""
        for run in self.runs.started:
            self.worker._release_limit_slot(run.id)
        self.runs.started.clear()

    async def take(self, seconds: float = 0.0) -> int:
        """Take what is due, in that time for each request; return how many runs are in hand then."""
        self.takes = seconds
        await self.worker._submit_scheduled_flow_runs(await self.worker._get_scheduled_flow_runs())
        return int(self.worker.limiter.borrowed_tokens)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """A worker without `--limit`, for which many runs are due."""
    made, runs = KeyRotationWorker("pool"), Tasks()
    made._limiter = CapacityLimiter(made._limit or 0)
    made._runs_task_group = runs  # type: ignore[assignment] # what it needs of one
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield Looks(made, runs, monkeypatch)


async def test_a_worker_takes_more_runs_up_to_its_limit_while_it_finds_them_quickly(looks: Looks) -> None:
    """The server has time for them, so an emergency would be found as quickly."""
    in_hand = [await looks.take(SLOW_SECONDS / 4) for _ in range(100)]

    assert in_hand == sorted(in_hand)
    assert [in_hand.count(number) >= QUICK_LOOKS for number in range(ALWAYS, LIMIT + 1)] == [True] * (
        LIMIT - ALWAYS + 1
    )
    assert (in_hand[0], in_hand[-1]) == (ALWAYS, LIMIT)


async def test_a_worker_takes_no_more_runs_while_it_takes_long_to_find_them(looks: Looks) -> None:
    """An emergency would be found as late."""
    for _ in range(3 * QUICK_LOOKS):
        await looks.take(SLOW_SECONDS / 4)
    reached = await looks.take(SLOW_SECONDS / 4)
    assert reached > ALWAYS

    looks.end_runs()

    assert [await looks.take(SLOW_SECONDS * 2) for _ in range(3)] == [ALWAYS] * 3


async def test_emergencies_take_no_place_of_the_runs_that_a_worker_always_executes(looks: Looks) -> None:
    """One that waits for a service that is down must not keep every other rotation waiting."""
    waiting = [run_of(emergency=True) for _ in range(RESERVED_FOR_EMERGENCIES)]
    await looks.worker._submit_scheduled_flow_runs(due(*waiting))
    looks.now += PATIENCE_SECONDS

    assert await looks.take() == RESERVED_FOR_EMERGENCIES + ALWAYS


async def test_looks_while_others_stand_still_for_an_emergency_bring_no_more_runs(looks: Looks) -> None:
    """They are quick because nobody else asks the server."""
    await looks.take()
    await looks.worker._submit_scheduled_flow_runs(due(run_of(emergency=True)))
    for _ in range(3 * QUICK_LOOKS):
        await looks.take()

    assert looks.worker._allowed() == ALWAYS


async def test_a_worker_takes_no_ordinary_run_while_a_service_asks_it_to_wait(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 429 to one run, others would get the same answer; an emergency is taken all the same."""
    monkeypatch.setattr("flows.worker.seconds_to_wait", lambda: 7.0)
    emergency = run_of(emergency=True)

    await looks.worker._submit_scheduled_flow_runs(due(run_of(), emergency))

    assert (await looks.take(), looks.runs.started) == (1, [emergency])


async def test_a_run_that_keeps_its_place_is_not_taken_again(looks: Looks) -> None:
    """It can be listed again before its place is free; Prefect's worker would end with an error."""
    run, other = run_of(), run_of()
    await looks.worker._submit_scheduled_flow_runs(due(run))
    looks.worker._submitting_flow_run_ids.clear()

    await looks.worker._submit_scheduled_flow_runs(due(run, other))

    assert looks.runs.started == [run, other]


async def test_a_run_that_is_listed_again_takes_no_place_in_the_list_of_another(looks: Looks) -> None:
    """A run that is tried again while its former attempt has not ended comes first in the server's list."""
    await looks.take()
    looks.worker._release_limit_slot(looks.runs.started[0].id)

    await looks.take()

    assert looks.wanted == [ALWAYS, ALWAYS]
