"""Adding a rotation with the form, against a real Prefect server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending
from prefect.utilities.callables import parameter_schema

from flows import add_rotation
from flows.show import artifacts
from tasks.model.rotation import parse_rotation
from tasks.model.schedules import parse_timetable
from tasks.world.deployments import accepts_zone, read_timetable
from tests.by_hand import ledger_value
from tests.e2e.conftest import Services, without_worker
from tests.e2e.form import add, added, deployed, form, runs_of, shown

pytestmark = without_worker


async def test_the_form_adds_a_deployment_like_the_example(services: Services) -> None:
    """Entrypoint, pool, tags, parameters and schedule are those of the example, named after the rotation."""
    fields = await form(services)
    name = fields["rotation_name"]

    state = await add(fields)

    made = await deployed(name)
    assert state.is_completed(), state.message
    assert made is not None
    assert (made.entrypoint, made.pull_steps, made.work_pool_name) == ("flows.rotate:rotate", [], "key-rotation")
    assert set(made.tags) == {"key-rotation", name}
    rotation = parse_rotation(made.parameters["rotation"])
    assert (rotation.connection, rotation.destinations) == (services.connection, [f"secret/{name}"])
    assert (rotation.key.limit_usd, rotation.key.limit_reset) == (Decimal(50), "monthly")
    assert (rotation.overlap, rotation.description) == (timedelta(hours=24), "The key of the checkout.")
    [schedule] = made.schedules
    assert (schedule.slug, schedule.active) == ("auto-rotation", True)
    assert str(read_timetable(schedule.schedule)) == "every 30 days at 03:30 Europe/Berlin"
    assert str(made.id) in await shown(name)


async def takes_up(run: FlowRun) -> str:
    """Return the state that a run gets when a worker takes it."""
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Pending())
        return str((await client.read_flow_run(run.id)).state_name)


async def test_an_emergency_does_not_queue_behind_another_run(services: Services) -> None:
    """In a deployment that the form created, an emergency starts while another run is running."""
    fields = await form(services)
    made = await added(fields)
    async with get_client() as client:
        ordinary = await client.create_flow_run_from_deployment(made.id)
        emergency = await client.create_flow_run_from_deployment(made.id, parameters={"emergency": True})

    begun = [await takes_up(ordinary), await takes_up(emergency)]

    assert begun == ["Pending", "Pending"]


async def test_auto_rotation_may_be_off(services: Services) -> None:
    """Without auto-rotation the schedule exists but is inactive, and the message says how the key is rotated."""
    fields = await form(services, auto_rotation=False)

    state = await add(fields)

    made = await deployed(fields["rotation_name"])
    assert made is not None
    assert [schedule.active for schedule in made.schedules] == [False]
    assert "rotates only when run manually" in str(state.message)


async def test_the_overview_shows_a_rotation_as_soon_as_it_is_added(services: Services) -> None:
    """A person must not have to wait for its first run, or for the next refresh of the overview."""
    fields = await form(services)

    await add(fields)

    overview: Any = await Artifact.aget("key-rotations")
    [line] = [line for line in overview.data.splitlines() if line.startswith(f"| [{fields['rotation_name']}](")]
    assert "| degraded | none |" in line


async def test_what_cannot_be_shown_was_done_all_the_same(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Prefect rejects the artifact, the rotation was added nevertheless, and the run completes."""
    fields = await form(services)

    async def fail(**_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(artifacts, "acreate_markdown_artifact", fail)

    state = await add(fields)

    assert state.is_completed(), state.message
    assert await deployed(fields["rotation_name"]) is not None


def test_the_form_asks_in_the_order_in_which_a_person_thinks() -> None:
    """Who makes the key and when comes first, then the key, then its destinations, and optional fields come last."""
    fields = parameter_schema(add_rotation).properties

    assert sorted(fields, key=lambda name: fields[name]["position"]) == [
        "connection",
        "auto_rotation",
        "rotate_at",
        "time_zone",
        "spread",
        "interval_days",
        "key_name",
        "limit_usd",
        "limit_reset",
        "include_byok_in_limit",
        "destinations",
        "other_destinations",
        "overwrite",
        "overlap",
        "rotation_name",
        "description",
        "make_key_now",
        "review_only",
    ]


async def test_a_spread_rotation_has_a_minute_of_its_own(services: Services) -> None:
    """Schedule and artifact show the minute, the first key is made at once, and a second submission changes nothing."""
    fields = await form(services, spread="2h", make_key_now=True)
    name = fields["rotation_name"]
    table = parse_timetable(30, "03:30", "Europe/Berlin", accepts_zone).spread(name, timedelta(hours=2))

    await add(fields)
    again = await add({**fields, "make_key_now": False})

    made = await deployed(name)
    assert made is not None
    assert [str(read_timetable(each.schedule)) for each in made.schedules] == [str(table)]
    assert f"- Schedule: {table}" in await shown(name)
    assert [
        run.expected_start_time and run.expected_start_time <= datetime.now(UTC) for run in await runs_of(made)
    ] == [True]
    assert "is unchanged" in str(again.message)


async def test_the_form_leaves_no_secret_anywhere(services: Services) -> None:
    """The parameters are references, and neither the artifact nor a variable contains a secret of the blocks."""
    fields = await form(services)

    await add(fields)

    made = await deployed(fields["rotation_name"])
    assert made is not None
    everything = f"{made.model_dump_json()}{await shown(fields['rotation_name'])}"
    assert "sk-or-" not in everything
    assert await ledger_value(fields["rotation_name"]) is None
