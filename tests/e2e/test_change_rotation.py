"""Changing a rotation with the form, against a real Prefect server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule

from flows import rotate
from tasks.model.schedules import parse_timetable
from tasks.world.deployments import accepts_zone, read_timetable
from tests.by_hand import ledger_of
from tests.e2e.conftest import Services, without_worker
from tests.e2e.form import add, added, deployed, form, runs_of, shown

pytestmark = without_worker


async def test_the_queue_of_an_older_deployment_is_taken_away(services: Services) -> None:
    """An earlier version created deployments with a limit, which the form removes with any change."""
    fields = await form(services)
    made = await added(fields)
    async with get_client() as client:
        await client.update_deployment(made.id, DeploymentUpdate(concurrency_limit=1))

    await add(fields)

    changed = await deployed(fields["rotation_name"])
    assert changed is not None
    assert changed.global_concurrency_limit is None


@pytest.mark.parametrize(
    ("changes", "days", "at", "window"),
    [
        ({"overlap": "7d"}, 30, "03:30", 2),
        ({"rotate_at": "05:00"}, 30, "05:00", 2),
        ({"interval_days": 7}, 7, "03:30", 2),
        ({"spread": "4h"}, 30, "03:30", 4),
        ({"spread": "0h"}, 30, "03:30", 0),
    ],
    ids=["something else", "time", "interval", "another spread", "no spread any more"],
)
async def test_a_spread_counts_from_the_time_that_was_asked_for(
    services: Services, changes: dict[str, Any], days: int, at: str, window: int
) -> None:
    """A new time or interval keeps the offset of the spread; another spread replaces it instead of adding to it."""
    fields = await form(services, spread="2h")
    name = fields["rotation_name"]
    await add(fields)

    state = await add({"rotation_name": name, "make_key_now": False, **changes})

    made = await deployed(name)
    table = parse_timetable(days, at, "Europe/Berlin", accepts_zone).spread(name, timedelta(hours=window))
    assert state.is_completed(), state.message
    assert made is not None
    assert [read_timetable(each.schedule) for each in made.schedules] == [table]


async def test_an_existing_name_changes_that_rotation(services: Services) -> None:
    """The artifact shows each changed field; fields that the form does not have keep their values."""
    fields = await form(services)
    name = fields["rotation_name"]
    first = await added(fields)
    workspace = {**first.parameters["rotation"]["key"], "workspace_id": "team-a"}
    async with get_client() as client:
        parameters = {"emergency": False, "rotation": {**first.parameters["rotation"], "key": workspace}}
        await client._client.patch(f"/deployments/{first.id}", json={"parameters": parameters, "tags": ["mine"]})

    state = await add({**fields, "interval_days": 7, "limit_usd": "no limit", "limit_reset": "unchanged"})

    changed = await deployed(name)
    assert state.is_completed(), state.message
    assert changed is not None
    assert (changed.id, changed.tags, changed.description) == (first.id, ["mine"], first.description)
    assert changed.parameters["rotation"]["key"]["workspace_id"] == "team-a"
    assert changed.parameters["rotation"]["key"]["limit_usd"] is None
    assert [str(read_timetable(each.schedule)) for each in changed.schedules] == ["every 7 days at 03:30 Europe/Berlin"]
    table = await shown(name)
    assert "| Limit (USD) | 50 | none |" in table
    assert "| Schedule | every 30 days at 03:30 Europe/Berlin | every 7 days at 03:30 Europe/Berlin |" in table
    assert "workspace" not in table


async def test_a_field_left_empty_keeps_its_value(services: Services) -> None:
    """To change one field, a person enters only that field and the name of the rotation."""
    fields = await form(services)
    name = fields["rotation_name"]
    await add(fields)
    before = await deployed(name)

    state = await add({"rotation_name": name, "overlap": "7d", "make_key_now": False})

    after = await deployed(name)
    assert state.is_completed(), state.message
    assert before is not None
    assert after is not None
    assert after.parameters["rotation"] == {**before.parameters["rotation"], "overlap": "P7D"}
    assert after.schedules == before.schedules
    table = (await shown(name)).partition("## Changes")[2]
    assert "| Overlap | 1 day | 7 days |" in table
    assert table.count("\n| ") == 3


@pytest.mark.parametrize(("asked", "is_paused"), [({}, True), ({"auto_rotation": True}, False)], ids=["not", "asked"])
async def test_the_form_never_announces_a_rotation_of_a_paused_deployment(
    services: Services, asked: dict[str, Any], is_paused: bool
) -> None:
    """The deployment is resumed only on request; until then, the message says that it rotates manually only."""
    fields = await form(services)
    made = await added(fields)
    async with get_client() as client:
        await client.update_deployment(made.id, DeploymentUpdate(paused=True))

    state = await add({"rotation_name": fields["rotation_name"], "overlap": "7d", "make_key_now": False, **asked})

    after = await deployed(fields["rotation_name"])
    assert after is not None
    assert (after.paused, after.schedules[0].active) == (is_paused, True)
    assert ("it rotates only when run manually" in str(state.message)) is is_paused


async def test_a_schedule_that_the_form_cannot_say_is_left_as_it_is(services: Services) -> None:
    """A cron schedule survives other changes; to change its interval, time or zone, all of them are required."""
    fields = await form(services)
    name = fields["rotation_name"]
    made = await added(fields)
    async with get_client() as client:
        cron = DeploymentScheduleUpdate(slug="auto-rotation", schedule=CronSchedule(cron="0 4 * * 1"), active=True)
        await client.update_deployment(made.id, DeploymentUpdate(schedules=[cron]))

    changed = await add({"rotation_name": name, "overlap": "7d", "make_key_now": False})
    refused = await add({"rotation_name": name, "interval_days": 7, "make_key_now": False})

    after = await deployed(name)
    assert changed.is_completed(), changed.message
    assert "its schedule is as before" in str(changed.message)
    assert after is not None
    assert [str(getattr(each.schedule, "cron", "")) for each in after.schedules] == ["0 4 * * 1"]
    assert str(refused.message).startswith("rotate_at, time_zone, interval_days: fill in all three")


@pytest.mark.parametrize("slug", [None, "mondays"])
async def test_a_changed_timetable_leaves_other_schedules_as_they_are(services: Services, slug: str | None) -> None:
    """Given a further schedule that a person has added in the dashboard, where it gets no slug, or by the CLI."""
    fields = await form(services)
    made = await added(fields)
    further = CronSchedule(cron="0 4 * * 1", timezone="Europe/Berlin")
    asked = DeploymentScheduleCreate(schedule=further, active=False, slug=slug, parameters={"emergency": True})
    async with get_client() as client:
        await client.create_deployment_schedules(made.id, [asked])

    state = await add({"rotation_name": fields["rotation_name"], "interval_days": 7, "make_key_now": False})

    after = await deployed(fields["rotation_name"])
    assert state.is_completed(), state.message
    assert after is not None
    own, kept = sorted(after.schedules, key=lambda each: each.slug != "auto-rotation")
    assert read_timetable(own.schedule) == parse_timetable(7, "03:30", "Europe/Berlin", accepts_zone)
    assert (kept.slug, kept.schedule, kept.active, kept.parameters) == (slug, further, False, {"emergency": True})


async def test_a_review_shows_old_and_new_and_changes_nothing(services: Services) -> None:
    """A person sees what would be added or changed before it happens."""
    fields = await form(services)
    name = fields["rotation_name"]
    added = await add({**fields, "review_only": True})
    nothing = await deployed(name)
    new = await shown(name)
    await add(fields)
    before = await deployed(name)

    changed = await add({"rotation_name": name, "interval_days": 7, "review_only": True})

    assert nothing is None
    assert added.is_completed(), added.message
    assert "| Limit (USD) | none | 50 |" in new
    assert changed.is_completed(), changed.message
    assert await deployed(name) == before
    old = "every 30 days at 03:30 Europe/Berlin"
    assert f"| Schedule | {old} | every 7 days at 03:30 Europe/Berlin |" in await shown(name)


async def test_the_same_form_again_changes_nothing(services: Services) -> None:
    """A second submission creates no second rotation, and says so."""
    fields = await form(services)
    await add(fields)
    before = await deployed(fields["rotation_name"])

    state = await add(fields)

    after = await deployed(fields["rotation_name"])
    assert before is not None
    assert after is not None
    assert (after.id, after.parameters, after.schedules) == (before.id, before.parameters, before.schedules)
    assert "is unchanged" in str(state.message)


async def test_a_change_never_rotates_at_once(services: Services) -> None:
    """The form runs no rotation that has a key already; the next run is one interval after the last rotation."""
    fields = await form(services, make_key_now=True)
    await add({**fields, "make_key_now": False})
    made = await deployed(fields["rotation_name"])
    assert made is not None
    assert (await rotate(made.parameters["rotation"], return_state=True)).is_completed()

    state = await add({**fields, "interval_days": 10})

    changed = await deployed(fields["rotation_name"])
    assert state.is_completed(), state.message
    assert changed is not None
    assert await runs_of(changed) == []
    assert len(services.openrouter.created) == 1
    ledger = await ledger_of(fields["rotation_name"])
    assert ledger.current is not None
    due = ledger.current.since.astimezone(ZoneInfo("Europe/Berlin")).date() + timedelta(days=10)
    schedule = changed.schedules[0].schedule
    assert isinstance(schedule, RRuleSchedule)
    assert f"DTSTART:{due:%Y%m%d}T033000" in schedule.rrule


async def test_the_form_says_which_key_the_former_place_of_an_edited_block_holds(services: Services) -> None:
    """Given a block that was edited since, the form names its former place, the key there, and when that ends."""
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/moves"]))
    block = services.make("vault-secret")
    await block.asave("moves", overwrite=True)
    await rotate(rotation, return_state=True)
    key = (await ledger_of(rotation.name)).current
    assert key is not None
    await block.model_copy(update={"path": f"{block.path}-moved"}).asave("moves", overwrite=True)

    state = await add({**await form(services), "rotation_name": rotation.name, "destinations": ["vault-secret/moves"]})

    assert str(state.message).endswith(
        f"The former place {block.place()} may still hold the key {key.label}, which ends 1 day after the next "
        "rotation: move its consumers before that."
    )
