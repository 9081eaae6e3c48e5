"""The worker type `key-rotation`: which runs it executes, and when it has capacity for them."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
import yaml
from anyio import CapacityLimiter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from blocks.errors import ConfigurationError
from flows.attempts import PATIENCE_SECONDS, Attempt, Precedence
from flows.worker import (
    FLOWS,
    RESERVED_FOR_EMERGENCIES,
    KeyRotationJobConfiguration,
    KeyRotationWorker,
    flow_at,
)
from sandbox.stack import CHECKOUT
from tasks.model.parameters import is_emergency

DEPLOYMENTS = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]


def run_of(**parameters: Any) -> FlowRun:
    """Return a flow run with parameters."""
    return FlowRun(flow_id=uuid4(), parameters=parameters)


def prepared(entrypoint: str | None, run: dict[str, Any], deployment: dict[str, Any]) -> KeyRotationJobConfiguration:
    """Return the configuration of a run with its own job variables and those of its deployment."""
    configuration = KeyRotationJobConfiguration()
    configuration.prepare_for_flow_run(
        FlowRun(flow_id=uuid4(), job_variables=run),
        DeploymentResponse(name="a", flow_id=uuid4(), entrypoint=entrypoint, job_variables=deployment, labels={}),
    )
    return configuration


class Tasks:
    """A task group that records what it would start."""

    def __init__(self) -> None:
        self.started: list[FlowRun] = []

    def start_soon(self, _what: Callable[..., Any], flow_run: FlowRun) -> None:
        """Record a flow run."""
        self.started.append(flow_run)


@pytest.fixture
def worker() -> Iterator[tuple[KeyRotationWorker, Tasks]]:
    """A worker with room for two ordinary runs, and a record of what it starts; nothing is logged to a server."""
    made, tasks = KeyRotationWorker("pool", limit=2), Tasks()
    made._limiter = CapacityLimiter(made._limit or 0)
    made._runs_task_group = tasks  # type: ignore[assignment] # what it needs of one
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield made, tasks


def due(*runs: FlowRun) -> list[WorkerFlowRunResponse]:
    """Return flow runs as the server lists them."""
    return [WorkerFlowRunResponse(work_pool_id=uuid4(), work_queue_id=uuid4(), flow_run=run) for run in runs]


def test_prefect_finds_the_worker_type_by_an_entry_point() -> None:
    """`prefect worker start --type key-rotation` needs only the installed package."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]

    assert KeyRotationWorker.__module__ in project["entry-points"]["prefect.collections"].values()
    assert KeyRotationWorker.type == "key-rotation"


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_every_deployment_of_the_project_can_be_run(deployment: dict[str, Any]) -> None:
    """The worker knows the flow of each entrypoint in prefect.yaml."""
    assert flow_at(deployment["entrypoint"]) is FLOWS[deployment["entrypoint"]]


@pytest.mark.parametrize(
    "entrypoint",
    [
        "os:system",
        "flows/rotate.py:rotate",
        "flows.rotate:follow_protocol",
        "flows.rotate.rotate",
        "tasks.create:create_key",
        "flows.worker:__import__",
        "",
        None,
    ],
)
def test_any_other_entrypoint_is_refused(entrypoint: str | None) -> None:
    """The worker looks an entrypoint up in its own list, and never imports it."""
    with pytest.raises(ConfigurationError, match="runs the flows of this package only"):
        prepared(entrypoint, {}, {}).flow()


@pytest.mark.parametrize(
    ("run", "deployment"),
    [({"env": {"A": "b"}}, {}), ({}, {"env": {"A": "b"}}), ({"env.A": "b"}, {}), ({}, {"env.A": "b"})],
)
def test_environment_variables_of_a_run_are_refused(run: dict[str, Any], deployment: dict[str, Any]) -> None:
    """They would be ignored silently, because all runs share the environment of the worker."""
    with pytest.raises(ConfigurationError, match="one environment for all its runs"):
        prepared("flows.rotate:rotate", run, deployment).flow()


def test_the_command_of_a_process_worker_is_passed_over() -> None:
    """One prefect.yaml serves both worker types."""
    assert prepared("flows.rotate:rotate", {}, {"command": "python -m prefect.engine"}).flow().name == "rotate"


def test_the_template_of_a_new_pool_is_minimal() -> None:
    """A pool of this type offers no setting that would have no effect."""
    template = KeyRotationWorker.get_default_base_job_template()

    assert list(template["job_configuration"]) == list(template["variables"]["properties"]) == ["name"]


async def test_a_run_that_has_just_ended_cannot_be_cancelled_or_paused() -> None:
    """Its event loop closes in its own thread; an error here would end the worker."""
    ended = await in_hand()
    ended._loop, ended._task = asyncio.new_event_loop(), asyncio.current_task()
    ended._loop.close()

    ended.cancel()
    ended.pause(Event())

    assert ended.is_cancelled


async def test_an_emergency_has_a_place_when_all_others_are_taken(worker: tuple[KeyRotationWorker, Tasks]) -> None:
    """Ordinary runs fill the limit; after that the worker takes an emergency, but no further ordinary run."""
    made, tasks = worker
    ordinary = [run_of() for _ in range(3)]
    await made._submit_scheduled_flow_runs(due(*ordinary))
    assert tasks.started == ordinary[:2]

    emergency = run_of(emergency=True)
    await made._submit_scheduled_flow_runs(due(run_of(), run_of(emergency=False), run_of(emergency="yes"), emergency))

    assert tasks.started == [*ordinary[:2], emergency]


async def test_emergencies_are_taken_first_and_not_without_bound(worker: tuple[KeyRotationWorker, Tasks]) -> None:
    """However many emergencies are due, the worker takes no more than its capacity."""
    made, tasks = worker
    emergencies = [run_of(emergency=True) for _ in range(20)]

    await made._submit_scheduled_flow_runs(due(run_of(), *emergencies))

    assert tasks.started == emergencies[: 2 + RESERVED_FOR_EMERGENCIES]


async def test_a_run_that_is_listed_twice_is_taken_once(worker: tuple[KeyRotationWorker, Tasks]) -> None:
    """A run is still listed while the worker takes it, and an emergency is listed twice."""
    made, tasks = worker
    run, emergency = run_of(), run_of(emergency=True)

    await made._submit_scheduled_flow_runs(due(emergency, emergency))
    made._precedence.end(emergency.id)
    await made._submit_scheduled_flow_runs(due(emergency, run, run))
    await made._submit_scheduled_flow_runs(due(emergency, run))

    assert tasks.started == [emergency, run]


async def test_a_run_that_is_retried_as_it_ends_is_taken_afterwards(worker: tuple[KeyRotationWorker, Tasks]) -> None:
    """The run is still in the worker's hands; to start it twice would end the worker."""
    made, tasks = worker
    run, other = run_of(), run_of()
    await made._submit_scheduled_flow_runs(due(run))
    made._submitting_flow_run_ids.clear()

    await made._submit_scheduled_flow_runs(due(run, other))

    assert tasks.started == [run, other]


async def test_with_a_high_limit_no_more_runs_are_asked_for_than_the_server_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server rejects a larger request, and the error would end the worker."""
    made, asked = KeyRotationWorker("pool", limit=1000), list[int]()
    made._limiter = CapacityLimiter(made._limit or 0)

    async def list_due(wanted: int) -> list[WorkerFlowRunResponse]:
        asked.append(wanted)
        return due(*(run_of() for _ in range(wanted)))

    async def list_emergencies() -> list[WorkerFlowRunResponse]:
        return due(run_of(emergency=True))

    monkeypatch.setattr(made, "_due", list_due)
    monkeypatch.setattr(made, "_emergencies", list_emergencies)

    found = await made._get_scheduled_flow_runs()

    assert asked[0] <= 200
    assert is_emergency(found[0].flow_run.parameters)


class Waiting:
    """An event that records how long somebody would wait for it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> None:
        """Record the timeout."""
        self.seconds.append(seconds)


async def in_hand(**parameters: Any) -> Attempt:
    """Return an attempt that has started in this thread."""
    run = run_of(**parameters)
    attempt = Attempt(flow=FLOWS["flows.rotate:rotate"], flow_run=run, parameters=run.parameters)
    attempt._loop = asyncio.get_running_loop()
    return attempt


async def test_a_run_stands_still_for_a_few_seconds_at_most() -> None:
    """It pauses in its own thread, as if its process were stopped, and only once."""
    attempt, event = await in_hand(), Waiting()

    attempt.pause(event)  # type: ignore[arg-type] # what it needs of one
    await asyncio.sleep(0)
    attempt._patience = 0.0
    attempt.pause(event)  # type: ignore[arg-type] # what it needs of one
    await asyncio.sleep(0)

    assert event.seconds == [PATIENCE_SECONDS, 0.0]


async def test_the_runs_of_other_rotations_stand_still_for_an_emergency(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the same rotation may hold its slot, an audit any slot, and another emergency has precedence, too."""
    ordinary = await in_hand(rotation={"name": "billing"})
    others = [
        await in_hand(rotation={"name": "checkout"}),
        await in_hand(rotation="checkout"),
        await in_hand(connection="openrouter"),
        await in_hand(rotation={"name": "billing"}, emergency=True),
    ]
    still: list[Attempt] = []
    monkeypatch.setattr(Attempt, "pause", lambda attempt, _until: still.append(attempt))

    Precedence().begin(run_of(rotation={"name": "checkout"}, emergency=True), [ordinary, *others])

    assert still == [ordinary]


async def test_the_others_go_on_when_an_emergency_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paused runs continue, and ordinary runs are taken again."""
    emergency, precedence, waits = run_of(emergency=True), Precedence(), []
    monkeypatch.setattr(Attempt, "pause", lambda _attempt, until: waits.append(until))
    precedence.begin(emergency, [await in_hand(rotation="billing")])
    assert (precedence.is_taken, waits[0].is_set()) == (True, False)

    precedence.end(emergency.id)

    assert (precedence.is_taken, waits[0].is_set()) == (False, True)


async def test_no_ordinary_run_is_begun_during_an_emergency(worker: tuple[KeyRotationWorker, Tasks]) -> None:
    """It starts once the emergency has ended."""
    made, tasks = worker
    emergency, ordinary = run_of(emergency=True), run_of()

    await made._submit_scheduled_flow_runs(due(ordinary, emergency))
    assert tasks.started == [emergency]
    made._precedence.end(emergency.id)
    await made._submit_scheduled_flow_runs(due(ordinary))

    assert tasks.started == [emergency, ordinary]


async def test_an_emergency_that_finds_no_place_holds_nobody_up(worker: tuple[KeyRotationWorker, Tasks]) -> None:
    """Of more emergencies than the worker can take, the waiting ones have no precedence yet."""
    made, _ = worker
    runs = [run_of(emergency=True) for _ in range(100)]

    taken = await made._submit_scheduled_flow_runs(due(*runs))

    assert made._precedence._begun.keys() == {run.id for run in taken}
