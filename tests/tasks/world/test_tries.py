"""Which tries end after a success, and which runs are tries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import prefect
import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Pending, Running, Scheduled
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.server import running
from tasks.model.tries import NUMBER, Next, Try
from tasks.world.tries import TRY_TAG, end_tries, read_try, try_again

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
DEPLOYMENT = UUID(int=1)
PARAMETERS = {"rotation": {"name": "checkout"}, "emergency": False}


class Server:
    """The part of Prefect's API that tries use."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.made: FlowRun | None = None
        self.app = Starlette(
            routes=[
                Route("/api/admin/version", self.version),
                Route("/api/flow_runs/filter", self.list_runs, methods=["POST"]),
                Route("/api/flow_runs/{id}/labels", self.gone, methods=["PATCH"]),
                Route("/api/deployments/{id}/create_flow_run", self.create, methods=["POST"]),
                Route("/api/flow_runs/{id}", self.delete, methods=["DELETE"]),
            ]
        )

    async def version(self, _request: Request) -> Response:
        """Return the version, which the client requests first."""
        return JSONResponse(prefect.__version__)

    async def list_runs(self, _request: Request) -> Response:
        """Return all runs."""
        return JSONResponse(list(self.runs.values()))

    async def delete(self, request: Request) -> Response:
        """Delete a run."""
        del self.runs[request.path_params["id"]]
        return Response(status_code=204)

    async def create(self, request: Request) -> Response:
        """Return the run that this idempotency key has created, however long ago."""
        return await self.gone(request) if self.made is None else JSONResponse(self.made.model_dump(mode="json"))

    async def gone(self, _request: Request) -> Response:
        """Refuse: the run was deleted after it was listed, or its deployment was deleted."""
        return JSONResponse({"detail": "Not Found"}, status_code=404)

    def has(self, state: str, name: str = "", **fields: Any) -> str:
        """Add a run in a state, and return its id."""
        key = str(uuid4())
        at = NOW.isoformat()
        self.runs[key] = {
            "id": key, "state_type": state, "state_name": name or state.title(), "parameters": PARAMETERS, "tags": [],
            "labels": {}, "expected_start_time": at, "end_time": at if state == "FAILED" else None, **fields,
        }  # fmt: skip
        return key

    def has_try_of(self, run_id: UUID) -> str:
        """Add a scheduled try of a run, and return its id."""
        return self.has("SCHEDULED", tags=[TRY_TAG], labels=Try(0, run_id, NOW).labels(1))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server without runs."""
    server = Server()
    with running(server.app) as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        async with AsyncClientContext.get_or_create():
            yield server


def run_of(**fields: Any) -> FlowRun:
    """Return a run of the deployment."""
    wanted = {"flow_id": uuid4(), "deployment_id": DEPLOYMENT, "parameters": PARAMETERS, "run_count": 1, **fields}
    return FlowRun.model_validate(wanted)


async def test_a_run_that_has_rotated_ends_every_try(server: Server) -> None:
    """The rotation has done what they were scheduled for."""
    server.has_try_of(uuid4())

    await end_tries(run_of(), NOW, only_own=False)

    assert server.runs == {}


async def test_a_run_that_found_nothing_to_do_leaves_the_try_of_another_run(server: Server) -> None:
    """A Retry of a long completed run must not end the try of one that has failed since."""
    own, failed = run_of(), uuid4()
    server.has_try_of(own.id)
    other = server.has_try_of(failed)

    await end_tries(own, NOW, only_own=True)

    assert list(server.runs) == [other]


@pytest.mark.parametrize("only_own", [False, True])
async def test_only_a_run_that_has_rotated_tells_that_a_failure_is_over(server: Server, only_own: bool) -> None:
    """A run that did nothing must not notify a person that another run's failure is over."""
    server.has("FAILED")

    assert await end_tries(run_of(), NOW, only_own=only_own) is not only_own


@pytest.mark.parametrize("only_own", [False, True])
async def test_a_regular_run_in_the_place_of_a_try_ends_a_failure_only_if_it_has_rotated(
    server: Server, only_own: bool
) -> None:
    """Its number continues another run's failure, but the key may have been too young for it to rotate."""
    assert await end_tries(run_of(labels={NUMBER: 4}), NOW, only_own=only_own) is not only_own


async def test_a_try_that_finishes_what_was_left_of_its_run_ends_the_failure(server: Server) -> None:
    """The key was already current, and only the former one remained to be revoked."""
    tried = run_of(labels=Try(3, uuid4(), NOW).labels(4))

    assert await end_tries(tried, NOW, only_own=True)


async def test_a_persons_run_with_the_tag_of_a_try_is_none(server: Server) -> None:
    """Whoever copies a try copies its tags, so only the labels count."""
    copied = server.has("SCHEDULED", tags=[TRY_TAG])

    await end_tries(run_of(), NOW, only_own=False)

    assert list(server.runs) == [copied]


async def test_a_run_whose_deployment_was_deleted_has_no_try(server: Server) -> None:
    """Nothing is left to be tried, so neither the run nor the worker says that Prefect's API failed."""
    assert await try_again(run_of(name="rotate checkout"), "rotate", NOW, crashed=True) is None


@pytest.mark.parametrize(
    ("state", "is_taken"), [(Scheduled(), False), (Pending(), True), (Running(), True), (Completed(), True)]
)
async def test_a_run_that_goes_on_after_it_was_reported_as_crashed_learns_whether_its_try_has_started(
    server: Server, state: State[Any], is_taken: bool
) -> None:
    """A crash and a failure of one attempt have one try, which alerts for itself."""
    server.made = run_of(labels={NUMBER: 4}, state=state, expected_start_time=NOW)

    following = await try_again(run_of(name="rotate checkout"), "rotate", NOW)

    assert following == Next(4, NOW, is_taken=is_taken)
    assert following.needs_person is not is_taken


async def test_a_coming_run_that_is_deleted_while_it_is_marked_stops_nothing(server: Server) -> None:
    """The tries after it are still deleted."""
    coming = server.has("SCHEDULED", labels={NUMBER: 1})
    server.has_try_of(uuid4())

    await end_tries(run_of(), NOW, only_own=False)

    assert list(server.runs) == [coming]


AT = NOW - timedelta(minutes=1)


@pytest.mark.parametrize("auto_scheduled", [False, True])
def test_a_try_of_a_scheduled_run_is_no_persons_run(auto_scheduled: bool) -> None:
    """It respects the minimum age, like the scheduled run that it repeats."""
    failed = read_try(run_of(auto_scheduled=auto_scheduled, expected_start_time=AT, start_time=NOW), NOW)

    tried = read_try(run_of(labels=failed.labels(1)), NOW)

    assert tried.scheduled_for == (AT if auto_scheduled else None)
    assert read_try(run_of(labels=tried.labels(2)), NOW).scheduled_for == tried.scheduled_for


def test_a_retry_of_a_try_is_a_persons_run() -> None:
    """Whoever presses Retry wants a rotation whatever the age of the key."""
    failed = read_try(run_of(auto_scheduled=True, expected_start_time=AT), NOW)

    assert read_try(run_of(labels=failed.labels(1), run_count=2), NOW).scheduled_for is None


def test_a_regular_run_in_the_place_of_a_try_keeps_its_own_time() -> None:
    """Only its number continues that of the failed run."""
    run = run_of(labels={NUMBER: 2}, auto_scheduled=True, expected_start_time=AT)

    assert read_try(run, NOW) == Try(2, run.id, NOW, AT)
