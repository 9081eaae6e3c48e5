"""The deployments in prefect.yaml, and the layout of the project on which they rely."""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import httpx
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import RRuleSchedule as ClientRRuleSchedule
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.server.schemas.schedules import RRuleSchedule

from blocks.errors import ConfigurationError
from flows.deployments import FIRST_KEY_TAG, save_deployment
from sandbox.stack import CHECKOUT, read_settings
from tasks.model.rotation import Rotation, is_slug, parse_rotation
from tasks.world import gate
from tasks.world.deployments import read_timetable
from tasks.world.tries import TRY_TAG
from tests.prefect_client import client_with


def timetable(schedule: dict[str, Any]) -> str:
    """Return a schedule of the file in words."""
    if "cron" in schedule:
        return f"{schedule['cron']} {schedule['timezone']}"
    return str(read_timetable(ClientRRuleSchedule(rrule=schedule["rrule"], timezone=schedule["timezone"])))


USED = (
    "create_deployment",
    "create_flow",
    "read_deployment",
    "read_deployment_by_name",
    "read_work_pool",
    "update_deployment",
)
"""What saving a deployment calls."""
SETTINGS = ["prefect.env", "deploy/fleet.env"]
DEPLOYMENTS = {d["name"]: d for d in yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]}


def test_the_deployments_are_those_that_users_rely_on() -> None:
    """A table of name, flow, interval, time zone and limit makes every change visible here."""
    found = [(d["name"], d["entrypoint"], *map(timetable, d.get("schedules", []))) for d in DEPLOYMENTS.values()]

    assert found == [
        ("add-rotation", "flows.add_rotation:add_rotation"),
        ("check-connections", "flows.check_connections:check_connections", "0 6 * * * UTC"),
        ("overview", "flows.overview:overview", "0 5 * * * UTC"),
        ("example", "flows.rotate:rotate", "every 30 days at 03:30 Europe/Berlin"),
        ("retire", "flows.retire:retire"),
        ("restore-key", "flows.restore_key:restore_key"),
        ("apply-settings", "flows.apply_settings:apply_settings"),
        ("remove-rotation", "flows.remove_rotation:remove_rotation"),
        ("write-off-key", "flows.write_off_key:write_off_key"),
        ("audit", "flows.audit:audit", "15 6 * * * Europe/Berlin"),
    ]


@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=lambda d: d["name"])
def test_every_entrypoint_is_a_flow(deployment: dict[str, Any]) -> None:
    """A deployment runs a flow of the installed package."""
    module, _, name = deployment["entrypoint"].partition(":")

    assert getattr(importlib.import_module(module), name).name == name.replace("_", "-")


def test_the_example_rotation_is_valid() -> None:
    """The example's name is that of its deployment, and it passes the model's validation."""
    assert parse_rotation(DEPLOYMENTS["example"]["parameters"]["rotation"]).name == "example"


async def test_the_example_rotates_at_the_same_local_time_all_year() -> None:
    """It runs every 30 days at 03:30 in Berlin, whenever Prefect's scheduler loops, and across both clock changes."""
    schedule = DEPLOYMENTS["example"]["schedules"][0]
    rule = RRuleSchedule(rrule=schedule["rrule"], timezone=schedule["timezone"])
    looks = [datetime(2027, 1, 1, 12, tzinfo=UTC) + timedelta(days=9 * step) for step in range(41)]

    dates = sorted({date for now in looks for date in await rule.get_dates(3, start=now)})

    assert {f"{date:%H:%M}" for date in dates} == {"03:30"}
    assert {(after.date() - before.date()).days for before, after in pairwise(dates)} == {30}


@pytest.mark.parametrize("file", SETTINGS)
def test_settings_are_documented(file: str) -> None:
    """Every setting has a comment above it."""
    lines = (CHECKOUT / file).read_text().splitlines()
    explained = [
        lines[n - 1].startswith("#") or "=" in lines[n - 1] for n, line in enumerate(lines) if "=" in line[:80]
    ]

    assert read_settings(CHECKOUT / file)
    assert all(explained)


@pytest.mark.parametrize("tag", [FIRST_KEY_TAG, TRY_TAG])
def test_no_rotation_can_be_called_like_a_tag_that_tells_runs_apart(tag: str) -> None:
    """A rotation's name is a tag of each of its runs."""
    assert not is_slug(tag)


ALLOWED = {"blocks": {"blocks"}, "tasks": {"blocks", "tasks"}, "flows": {"blocks", "tasks", "flows"}}


@pytest.mark.parametrize("package", ALLOWED)
def test_each_package_imports_only_what_it_stands_on(package: str) -> None:
    """Blocks import neither tasks nor flows, tasks import no flows, and none of them imports the sandbox."""
    own = {"blocks", "tasks", "flows", "sandbox", "bench", "tests"}
    found = {name for file in (CHECKOUT / package).glob("*.py") for name in imported(file)} & own

    assert found <= ALLOWED[package]


def imported(file: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
    return names


def test_the_flow_fits_on_one_screen() -> None:
    """A reader must see the whole protocol at once, so the body of follow_protocol is short."""
    tree = ast.parse((CHECKOUT / "flows" / "rotate.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    protocol = next(function for function in functions if function.name == "follow_protocol")
    body = protocol.body[1:]  # without the docstring

    assert (body[-1].end_lineno or 0) - body[0].lineno < 30


REQUEST = httpx.Request("POST", "http://127.0.0.1/api/deployments/")
STATUS_404 = PrefectHTTPStatusError("", request=REQUEST, response=httpx.Response(404, request=REQUEST))
FOUND = DeploymentResponse(id=uuid4(), name="example", flow_id=uuid4(), labels={})
REMOVED = "The deployment rotate/example was removed meanwhile. Run the form again."


@contextmanager
def used(client: Any) -> Iterator[None]:
    """Make a client that of the code under test."""
    with (
        mock.patch("flows.deployments.get_or_create_client", return_value=(client, False)),
        mock.patch("tasks.world.gate.watched_client", return_value=client),
    ):
        yield


@pytest.mark.parametrize(
    ("call", "error", "is_new", "sentence"),
    [
        ("create_deployment", STATUS_404, True, "The work pool of-this-run does not exist: create it "),
        ("read_work_pool", ObjectNotFound(STATUS_404), False, "The work pool of-this-run does not exist: create it "),
        ("update_deployment", STATUS_404, False, REMOVED),
        ("read_deployment_by_name", [ObjectNotFound(STATUS_404)], False, REMOVED),
        ("read_deployment_by_name", [FOUND, ObjectNotFound(STATUS_404)], False, REMOVED),
        ("read_deployment", ObjectNotFound(STATUS_404), True, "The deployment of this run was removed meanwhile. "),
    ],
    ids=[
        "no pool",
        "no pool to put back",
        "removed during the change",
        "removed before the change",
        "removed after the change",
        "the form's own was removed",
    ],
)
async def test_what_does_not_exist_is_named(call: str, error: Any, is_new: bool, sentence: str) -> None:
    """A 404 is blamed on the work pool only if the pool is what does not exist."""
    own = DeploymentResponse(name="add-rotation", flow_id=uuid4(), work_pool_name="of-this-run", labels={})
    before = None if is_new else FOUND
    client = client_with(*USED)
    client.read_deployment.return_value, client.create_flow.return_value = own, uuid4()
    client.read_deployment_by_name.side_effect = ObjectNotFound(STATUS_404) if is_new else [FOUND]
    getattr(client, call).side_effect = error
    rotation = parse_rotation(DEPLOYMENTS["example"]["parameters"]["rotation"])
    run: Any = {"flow_run": FlowRun(flow_id=uuid4(), deployment_id=uuid4())}

    with (
        FlowRunContext.model_construct(**run),
        used(client),
        pytest.raises(ConfigurationError) as refused,
    ):
        await save_deployment(before, rotation, None, active=True)

    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("pool", "changes"),
    [("another", None), (None, {"work_pool_name": "of-this-run", "work_queue_name": "of-this-run-too"})],
    ids=["has a pool", "its pool was deleted"],
)
async def test_a_change_puts_the_pool_back_that_was_deleted(pool: str | None, changes: dict[str, str] | None) -> None:
    """Prefect does not, when a worker has made a pool of the same name; a pool that a person has chosen stays."""
    own = DeploymentResponse(
        name="add-rotation",
        flow_id=uuid4(),
        work_pool_name="of-this-run",
        work_queue_name="of-this-run-too",
        labels={},
    )
    rotation = parse_rotation(DEPLOYMENTS["example"]["parameters"]["rotation"])
    before = DeploymentResponse(
        id=uuid4(),
        name="example",
        flow_id=uuid4(),
        work_pool_name=pool,
        parameters={"rotation": rotation.model_dump(mode="json")},
        labels={},
    )
    client = client_with(*USED)
    client.read_deployment.return_value, client.read_deployment_by_name.return_value = own, before
    run: Any = {"flow_run": FlowRun(flow_id=uuid4(), deployment_id=uuid4())}

    with (
        FlowRunContext.model_construct(**run),
        used(client),
    ):
        await save_deployment(before, rotation, None, active=True)

    sent = [call.args[1].model_dump(exclude_unset=True) for call in client.update_deployment.await_args_list]
    assert sent == ([changes] if changes else [])


def deployed(**changes: Any) -> DeploymentResponse:
    """Return the example's deployment as the server has it."""
    rotation = parse_rotation(DEPLOYMENTS["example"]["parameters"]["rotation"])
    fields: dict[str, Any] = {"parameters": {"rotation": rotation.model_dump(mode="json")}, "work_pool_name": "pool"}
    return FOUND.model_copy(update=fields | changes)


def wanted(**changes: Any) -> Rotation:
    """Return the example with changes."""
    return parse_rotation({**DEPLOYMENTS["example"]["parameters"]["rotation"], **changes})


async def saved(client: Any, before: DeploymentResponse | None, rotation: Rotation) -> list[Any]:
    """Save a deployment, and return the updates that were sent."""
    with used(client):
        await save_deployment(before, rotation, None, active=True)
    return list(client.update_deployment.await_args_list)


async def test_a_change_that_was_made_meanwhile_is_not_overwritten() -> None:
    """A person's change may come between the form's look and its write, or before a write that is made again."""
    client, rotation = client_with(*USED), wanted(description="of the form")
    theirs = deployed(parameters={"rotation": wanted(description="of somebody else").model_dump(mode="json")})
    client.read_deployment_by_name.return_value = theirs

    for before in (deployed(), None):
        with pytest.raises(ConfigurationError, match="was changed meanwhile"):
            await saved(client, before, rotation)

    assert client.update_deployment.await_count == 0


async def test_a_change_whose_answer_was_lost_is_not_made_twice() -> None:
    """The next look finds it made."""
    client, rotation = client_with(*USED), wanted(description="of the form")
    after = deployed(parameters={"rotation": rotation.model_dump(mode="json")})
    client.read_deployment_by_name.side_effect = [deployed(), after, after]
    client.update_deployment.side_effect = httpx.ReadTimeout("no answer")

    sent = await saved(client, deployed(), rotation)

    assert len(sent) == 1


async def test_a_change_without_an_answer_in_time_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write may have taken effect; nobody tries the form again by itself."""
    monkeypatch.setattr(gate, "DEADLINE_SECONDS", 0.01)
    client, rotation = client_with(*USED), wanted(description="of the form")
    after = deployed(parameters={"rotation": rotation.model_dump(mode="json")})
    client.read_deployment_by_name.side_effect = [deployed(), after, after]

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    client.update_deployment.side_effect = hang

    assert len(await saved(client, deployed(), rotation)) == 1


async def test_nothing_is_asked_between_the_last_look_and_the_creation() -> None:
    """Prefect's create replaces a deployment of the same name, so the look comes last."""
    client, order = client_with(*USED), list[str]()
    client.create_flow.return_value = uuid4()
    for name in USED:
        getattr(client, name).side_effect = functools.partial(called, order, name)

    with used(client):
        await save_deployment(None, wanted(), None, active=True)

    assert order == ["create_flow", "read_deployment_by_name", "create_deployment", "read_deployment_by_name"]


def called(order: list[str], name: str, /, *_: Any, **__: Any) -> Any:
    """Note a call; the deployment exists once it was created."""
    order.append(name)
    if name == "read_deployment_by_name" and "create_deployment" not in order:
        raise ObjectNotFound(STATUS_404)
    return deployed() if name.startswith("read") else uuid4()


async def test_a_change_of_settings_brings_the_schema_of_this_version() -> None:
    """The server would refuse a field that an earlier version's schema does not have."""
    client = client_with(*USED)
    client.read_deployment_by_name.return_value = deployed()

    [sent] = await saved(client, deployed(), wanted(description="of the form"))

    fields = sent.args[1].model_dump(exclude_unset=True)["parameter_openapi_schema"]["definitions"]["Rotation"]
    assert set(fields["properties"]) == set(Rotation.model_fields)


async def test_a_change_that_was_refused_for_a_moment_is_made_again() -> None:
    """SQLite refuses a transaction now and then; nothing else has changed the deployment."""
    client, rotation = client_with(*USED), wanted(description="of the form")
    client.read_deployment_by_name.return_value = deployed()
    client.update_deployment.side_effect = [httpx.ReadTimeout("no answer"), None]

    assert len(await saved(client, deployed(), rotation)) == 2
