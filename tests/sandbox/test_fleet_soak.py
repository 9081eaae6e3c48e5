"""The soak of a fleet detects a worker that leaks memory or sockets."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Failed
from rich.console import Console

from sandbox.consumers import read_key
from sandbox.fleet.consumers import Consumers
from sandbox.fleet.herd import Herd, HerdRuns
from sandbox.fleet.kills import KINDS
from sandbox.fleet.soak import JUDGED, YOUNG, WorkerUsage, kinds_to_kill, show
from sandbox.fleet.trial_results import TrialResults
from sandbox.openrouter_account import OpenRouterSandbox
from tasks.model.tries import RUN, TRIES_AGAIN

LOADING = [(50.0 + number, 5) for number in range(YOUNG)]


def test_a_worker_that_leaks_is_noticed() -> None:
    """Growth is measured for each worker separately, so the other workers cannot hide it."""
    flat = [(100.0, 20)] * JUDGED
    leaking = [(100.0 + number, 20 + number) for number in range(JUDGED)]

    memory, sockets, judged = WorkerUsage({1: LOADING + flat, 2: LOADING + leaking}).worst()

    assert memory.share > 0.15
    assert sockets.difference > 15
    assert judged == 2


def test_sockets_of_a_busy_phase_are_no_leak() -> None:
    """Given a last quarter in which rotations take longer, each keeps its sockets for longer, and gives them back."""
    busy = [(100.0, 10)] * (JUDGED // 2) + [(100.0, 10 + 15 * (number % 3)) for number in range(JUDGED // 2)]

    _, sockets, _ = WorkerUsage({1: LOADING + busy}).worst()

    assert sockets.difference == 0


def test_a_worker_that_loads_its_modules_is_not_judged() -> None:
    """A worker grows while it loads modules, so a recently restarted one must not count as a leak."""
    assert WorkerUsage({1: LOADING}).worst() == ((0.0, 0.0), (0.0, 0.0), 0)


def test_the_table_shows_between_which_sizes_the_worst_worker_grew() -> None:
    """A growth without its size cannot be judged: ten per cent of a small worker are no leak."""
    flat = [(400.0, 90)] * JUDGED
    growing = [(142.0, 21)] * (JUDGED // 2) + [(146.4, 25)] * (JUDGED // 2)
    results = TrialResults(
        Herd(0, 0, ""),
        HerdRuns(NOON, set()),
        HerdRuns(NOON, set()),
        Consumers("", read_key),
        OpenRouterSandbox(),
        Counter(),
    )
    console = Console(record=True, width=120)

    show(results, WorkerUsage({1: LOADING + flat, 2: LOADING + growing}), 1.0, console)

    shown = console.export_text()
    assert "+3.1% (142.0 → 146.4 MB)" in shown
    assert "+4 (21 → 25)" in shown


def test_each_kind_is_killed_equally_often() -> None:
    """Otherwise an hour might pass without a kill of the database."""
    killed = Counter(islice(kinds_to_kill(Random(1)), 4 * len(KINDS)))  # noqa: S311 - reproducible

    assert killed == dict.fromkeys(KINDS, 4)


NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
ROTATION = uuid4()


def ended(minutes: int, state: State, *, rotation: UUID = ROTATION, finishes: FlowRun | None = None) -> FlowRun:
    """Return a run that ended some minutes after noon."""
    return FlowRun(
        flow_id=uuid4(),
        deployment_id=rotation,
        state=state,
        state_name=state.name,
        end_time=NOON + timedelta(minutes=minutes),
        labels={RUN: str(finishes.id)} if finishes else {},
    )


@pytest.mark.parametrize(
    ("state", "later", "finished"),
    [
        (Failed(name=TRIES_AGAIN), ended(2, Completed()), 2),
        (Crashed(), ended(2, Completed()), 2),
        (Completed(), ended(2, Completed()), 1),
        (Failed(), ended(2, Completed()), None),
        (Failed(name=TRIES_AGAIN), ended(2, Failed()), None),
        (Failed(name=TRIES_AGAIN), ended(0, Completed()), None),
        (Failed(name=TRIES_AGAIN), ended(2, Completed(), rotation=uuid4()), None),
    ],
    ids=["tries again", "crashed", "completed", "needs a person", "fails again", "earlier", "another rotation"],
)
def test_a_regular_run_finishes_what_would_have_been_tried_again(
    state: State, later: FlowRun, finished: int | None
) -> None:
    """No try is scheduled where the next regular run comes first; a run that needs a person is finished by nobody."""
    run = ended(1, state)

    found = HerdRuns(NOON, {run.id}, [run, later]).finished

    assert found == ({} if finished is None else {run.id: NOON + timedelta(minutes=finished)})


def test_a_try_finishes_its_run_whatever_that_ended_as() -> None:
    """It names the run that it finishes, and counts as its try."""
    run = ended(1, Failed())
    again = ended(5, Completed(), finishes=run)

    runs = HerdRuns(NOON, {run.id}, [run, again])

    assert (runs.finished, runs.tries) == ({run.id: NOON + timedelta(minutes=5)}, {run.id: 1})
