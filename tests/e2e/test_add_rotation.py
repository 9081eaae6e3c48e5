"""Adding and changing a rotation from the form, against a real Prefect server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect import State, get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed, Pending, Running
from prefect.utilities.callables import parameter_schema

from flows import add_rotation, deployments, rotate
from flows.add_rotation import CORRECT_IT
from flows.show import artifacts
from sandbox.server import Fault
from tasks.model.rotation import parse_rotation
from tasks.model.schedules import parse_timetable
from tasks.world.deployments import read_timetable
from tests.by_hand import ledger_of, ledger_value
from tests.e2e.conftest import World, pytestmark  # noqa: F401 - the mark applies to this module

HELP = "Help: docs/how-to/troubleshooting.md#a-setting-is-refused"


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no worker here, as for a worker whose one slot is taken by the form's own run."""
    monkeypatch.setattr(deployments, "STARTS_WITHIN_SECONDS", 0.0)


async def reference(slug: str, name: str) -> dict[str, Any]:
    """What the form sends for a picked block."""
    async with get_client() as client:
        document = await client.read_block_document_by_name(name, slug, include_secrets=False)
    return {"$ref": str(document.id)}


async def form(world: World, **changes: Any) -> dict[str, Any]:
    """The form as a person fills it in, for a rotation of a name of its own to a Prefect secret."""
    rotation = await world.prepare(world.rotation())
    return {
        "connection": await reference("openrouter-credentials", world.connection),
        "rotate_at": "03:30",
        "time_zone": "Europe/Berlin",
        "interval_days": 30,
        "key_name": "checkout service",
        "limit_usd": 50,
        "limit_reset": "monthly",
        "destinations": [await reference("secret", rotation.name)],
        "overlap": "PT24H",
        "rotation_name": rotation.name,
        "description": "The key of the checkout.",
        "make_key_now": False,
        **changes,
    }


async def add(form: dict[str, Any]) -> State[Any]:
    """Submit the form."""
    return await add_rotation(**form, return_state=True)


async def deployed(name: str) -> DeploymentResponse | None:
    """The rotation's deployment."""
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(f"rotate/{name}")
        except ObjectNotFound:
            return None


async def runs_of(deployment: DeploymentResponse) -> list[FlowRun]:
    """The runs of a deployment that no schedule has made."""
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))
    async with get_client() as client:
        return [run for run in await client.read_flow_runs(flow_run_filter=of_it) if not run.auto_scheduled]


async def shown(name: str) -> str:
    """What the form's run shows about a rotation."""
    artifact = await Artifact.aget(f"add-rotation-{name}")
    return str(artifact.data) if artifact else ""


async def test_the_form_adds_a_deployment_like_the_example(world: World) -> None:
    """Entrypoint, pool, tags, parameters and schedule are those of the example, named after the rotation."""
    fields = await form(world)
    name = fields["rotation_name"]

    state = await add(fields)

    made = await deployed(name)
    assert state.is_completed(), state.message
    assert made is not None
    assert (made.entrypoint, made.pull_steps, made.work_pool_name) == ("flows.rotate:rotate", [], "key-rotation")
    assert set(made.tags) == {"key-rotation", name}
    rotation = parse_rotation(made.parameters["rotation"])
    assert (rotation.connection, rotation.destinations) == (world.connection, [f"secret/{name}"])
    assert (rotation.key.limit_usd, rotation.key.limit_reset) == (Decimal(50), "monthly")
    assert (rotation.overlap, rotation.description) == (timedelta(hours=24), "The key of the checkout.")
    [schedule] = made.schedules
    assert (schedule.slug, schedule.active) == ("auto-rotation", True)
    assert str(read_timetable(schedule.schedule)) == "every 30 days at 03:30 Europe/Berlin"
    assert str(made.id) in await shown(name)


async def takes_up(run: FlowRun) -> str:
    """The state that a run gets when a worker takes it up."""
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Pending())
        return str((await client.read_flow_run(run.id)).state_name)


async def test_an_emergency_does_not_queue_behind_another_run(world: World) -> None:
    """Of a rotation that the form has made, an emergency begins while another run is at work."""
    fields = await form(world)
    await add(fields)
    made = await deployed(fields["rotation_name"])
    assert made is not None
    async with get_client() as client:
        ordinary = await client.create_flow_run_from_deployment(made.id)
        emergency = await client.create_flow_run_from_deployment(made.id, parameters={"emergency": True})

    begun = [await takes_up(ordinary), await takes_up(emergency)]

    assert begun == ["Pending", "Pending"]


async def test_the_queue_of_an_older_deployment_is_taken_away(world: World) -> None:
    """A deployment that an earlier version made with a limit loses it when the form changes the rotation."""
    fields = await form(world)
    await add(fields)
    made = await deployed(fields["rotation_name"])
    assert made is not None
    async with get_client() as client:
        await client.update_deployment(made.id, DeploymentUpdate(concurrency_limit=1))

    await add(fields)

    changed = await deployed(fields["rotation_name"])
    assert changed is not None
    assert changed.global_concurrency_limit is None


async def test_auto_rotation_may_be_off(world: World) -> None:
    """With auto-rotation off the schedule is there and not active, and the sentence says when it rotates."""
    fields = await form(world, auto_rotation=False)

    state = await add(fields)

    made = await deployed(fields["rotation_name"])
    assert made is not None
    assert [schedule.active for schedule in made.schedules] == [False]
    assert "rotates only when run manually" in str(state.message)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rotate_at": "half past three"}, "rotate_at: "),
        ({"time_zone": "Atlantis"}, "time_zone: "),
        ({"spread": "13h"}, "spread: "),
        ({"interval_days": 0}, "interval_days: "),
        ({"key_name": " "}, "key_name: "),
        ({"limit_usd": -1}, "limit_usd: "),
        ({"limit_reset": "hourly"}, "limit_reset: "),
        ({"overlap": "48 bananas"}, "overlap: "),
        ({"rotation_name": "Not A Slug"}, "rotation_name: "),
        ({"destinations": []}, "destinations: "),
        ({"destinations": [{"$ref": "00000000-0000-0000-0000-000000000000"}]}, "destinations: "),
        ({"destinations": [None]}, "destinations: "),
        ({"other_destinations": ["secret/unknown"]}, "destinations: "),
        ({"other_destinations": ["openrouter-credentials/openrouter"]}, "destinations: "),
        ({"connection": "secret/unknown"}, "connection: "),
        ({"connection": "openrouter-credentials/unknown"}, "connection: "),
        ({"destinations": None}, "destinations: "),
        ({"other_destinations": 5}, "other_destinations: "),
        ({"auto_rotation": "false"}, "auto_rotation: "),
        ({"make_key_now": "no"}, "make_key_now: "),
    ],
)
async def test_a_wrong_field_makes_nothing(world: World, changes: dict[str, Any], sentence: str) -> None:
    """One plain sentence that begins with the field's name in the form; no deployment and no key."""
    fields = await form(world, **{"make_key_now": True, **changes})

    state = await add(fields)

    assert state.is_failed()
    assert str(state.message).startswith(sentence)
    assert "Traceback" not in str(state.message)
    assert await deployed(str(fields["rotation_name"])) is None
    assert world.openrouter.created == []


async def test_a_destination_that_is_down_makes_nothing(world: World) -> None:
    """Connection and destinations are proven to work before anything is made."""
    vault = await world.prepare(world.rotation(destinations=["vault-secret/down"]))
    fields = await form(world, make_key_now=True, other_destinations=vault.destinations)
    world.vault_app.state.faults.add(Fault(status=403, body='{"errors":["permission denied"]}'))

    state = await add(fields)

    assert state.is_failed()
    assert "Vault at" in str(state.message)
    assert await deployed(fields["rotation_name"]) is None
    assert world.openrouter.created == []


async def test_a_refused_management_key_makes_nothing(world: World) -> None:
    """A connection that OpenRouter refuses is told before anything is made."""
    fields = await form(world, make_key_now=True)
    world.openrouter.accounts[0].management_keys.clear()

    state = await add(fields)

    assert state.is_failed()
    assert "does not accept the management key" in str(state.message)
    assert await deployed(fields["rotation_name"]) is None
    assert world.openrouter.created == []


async def test_a_place_of_another_rotation_is_refused(world: World) -> None:
    """Two rotations would overwrite each other's key; the one that publishes there may itself be changed."""
    fields = await form(world)
    name, taken = fields["rotation_name"], f"{fields['rotation_name']}-too"
    await add(fields)

    refused = await add({**fields, "rotation_name": taken})
    changed = await add({**fields, "interval_days": 7})

    assert refused.message == (
        f"destinations: secret/{name} is already a destination of the rotation {name}. Nothing was created. "
        f"{CORRECT_IT} {HELP}"
    )
    assert await deployed(taken) is None
    assert changed.is_completed(), changed.message


async def test_two_blocks_for_one_place_are_refused(world: World) -> None:
    """A destination that is named twice, by blocks of different names, is one sentence, and nothing is made."""
    block = world.make("vault-secret")
    await block.asave("one", overwrite=True)
    await block.model_copy().asave("another", overwrite=True)
    fields = await form(world)

    refused = await add({**fields, "destinations": ["vault-secret/one", "vault-secret/another"]})

    assert refused.message == (
        f"destinations: vault-secret/one and vault-secret/another point to the same place, {block.place()}. "
        f"Nothing was created. {CORRECT_IT} {HELP}"
    )
    assert await deployed(fields["rotation_name"]) is None


async def test_the_overview_shows_a_rotation_as_soon_as_it_is_added(world: World) -> None:
    """Nobody has to wait for its first run, however young the overview is."""
    fields = await form(world)

    await add(fields)

    overview: Any = await Artifact.aget("key-rotations")
    [line] = [line for line in overview.data.splitlines() if line.startswith(f"| [{fields['rotation_name']}](")]
    assert "| degraded | none |" in line


async def test_what_cannot_be_shown_was_done_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that Prefect did not take does not make a failure of what was added."""
    fields = await form(world)

    async def fail(**_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(artifacts, "acreate_markdown_artifact", fail)

    state = await add(fields)

    assert state.is_completed(), state.message
    assert await deployed(fields["rotation_name"]) is not None


def test_the_form_asks_in_the_order_in_which_a_person_thinks() -> None:
    """First who makes the key and when, then the key, then where it goes; what may be left alone stands last."""
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


async def test_a_spread_rotation_has_a_minute_of_its_own(world: World) -> None:
    """The schedule and the artifact show it; its first key is made at once; the same form again changes nothing."""
    fields = await form(world, spread="2h", make_key_now=True)
    name = fields["rotation_name"]
    table = parse_timetable(30, "03:30", "Europe/Berlin").spread(name, timedelta(hours=2))

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
    world: World, changes: dict[str, Any], days: int, at: str, window: int
) -> None:
    """A change of the time or the interval keeps the distance from the time; another spread does not add to it."""
    fields = await form(world, spread="2h")
    name = fields["rotation_name"]
    await add(fields)

    state = await add({"rotation_name": name, "make_key_now": False, **changes})

    made = await deployed(name)
    table = parse_timetable(days, at, "Europe/Berlin").spread(name, timedelta(hours=window))
    assert state.is_completed(), state.message
    assert made is not None
    assert [read_timetable(each.schedule) for each in made.schedules] == [table]


async def test_an_existing_name_changes_that_rotation(world: World) -> None:
    """The artifact shows field by field what differs; what the form does not ask for stays as it was."""
    fields = await form(world)
    name = fields["rotation_name"]
    await add(fields)
    first = await deployed(name)
    assert first is not None
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


async def test_a_field_left_empty_keeps_its_value(world: World) -> None:
    """A person who changes one thing names the rotation and that thing, and nothing else."""
    fields = await form(world)
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


async def test_a_schedule_that_the_form_cannot_say_is_left_as_it_is(world: World) -> None:
    """A rotation by cron keeps its schedule when something else is changed; a part of another needs all of it."""
    fields = await form(world)
    name = fields["rotation_name"]
    await add(fields)
    made = await deployed(name)
    assert made is not None
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


async def test_everything_that_is_wrong_is_told_at_once(world: World) -> None:
    """One run of the form names every wrong field, and the way back into the form."""
    fields = await form(world, rotate_at="noon", time_zone="Berlin", overlap="a day", key_name="", limit_reset="hourly")

    state = await add(fields)

    assert state.message == (
        "rotate_at: must be a local time in 24-hour format, such as 03:30. "
        "time_zone: must be an IANA time zone, such as Europe/Berlin. "
        "key_name: is required. limit_reset: must be none, daily, weekly or monthly. "
        f"overlap: must be a duration, such as 24h, 7d or PT24H. Nothing was created. {CORRECT_IT} {HELP}"
    )
    assert await deployed(fields["rotation_name"]) is None


async def test_a_review_shows_old_and_new_and_changes_nothing(world: World) -> None:
    """Before it is done, a person sees what would be added, and what would be changed."""
    fields = await form(world)
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


async def test_the_same_form_again_changes_nothing(world: World) -> None:
    """Submitting the form twice makes no second rotation, and says so."""
    fields = await form(world)
    await add(fields)
    before = await deployed(fields["rotation_name"])

    state = await add(fields)

    after = await deployed(fields["rotation_name"])
    assert before is not None
    assert after is not None
    assert (after.id, after.parameters, after.schedules) == (before.id, before.parameters, before.schedules)
    assert "is unchanged" in str(state.message)


async def test_a_change_never_rotates_at_once(world: World) -> None:
    """A rotation that has a key is not run by the form, and its next run is the interval after its last rotation."""
    fields = await form(world, make_key_now=True)
    await add({**fields, "make_key_now": False})
    made = await deployed(fields["rotation_name"])
    assert made is not None
    assert (await rotate(made.parameters["rotation"], return_state=True)).is_completed()

    state = await add({**fields, "interval_days": 10})

    changed = await deployed(fields["rotation_name"])
    assert state.is_completed(), state.message
    assert changed is not None
    assert await runs_of(changed) == []
    assert len(world.openrouter.created) == 1
    ledger = await ledger_of(fields["rotation_name"])
    assert ledger.current is not None
    due = ledger.current.since.astimezone(ZoneInfo("Europe/Berlin")).date() + timedelta(days=10)
    schedule = changed.schedules[0].schedule
    assert isinstance(schedule, RRuleSchedule)
    assert f"DTSTART:{due:%Y%m%d}T033000" in schedule.rrule


async def test_with_one_busy_slot_the_first_key_is_scheduled_once(world: World) -> None:
    """Where no worker is free the run is reported and not waited for; trying again does not make a second one."""
    fields = await form(world, make_key_now=True)

    first = await add(fields)
    again = await add(fields)

    made = await deployed(fields["rotation_name"])
    assert made is not None
    [run] = await runs_of(made)
    assert "is created as soon as a worker is free" in str(first.message)
    assert again.is_completed()
    assert run.state_name == "Scheduled"
    assert str(run.id) in await shown(fields["rotation_name"])


async def test_a_first_key_that_failed_is_tried_again_by_the_same_form(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure of the first key's run is the form's failure, in its words; submitting again starts one more run."""
    monkeypatch.setattr(deployments, "STARTS_WITHIN_SECONDS", 60.0)
    fields = await form(world, make_key_now=True)
    sentence = "publish failed: Vault is sealed. Retry is safe."

    failed, _ = await asyncio.gather(add(fields), conclude_next_run(fields["rotation_name"], Failed(message=sentence)))
    healed, _ = await asyncio.gather(add(fields), conclude_next_run(fields["rotation_name"], Completed()))

    made = await deployed(fields["rotation_name"])
    assert made is not None
    assert failed.is_failed()
    assert sentence in str(failed.message)
    assert str(healed.message).endswith("Its first key is published.")
    assert len(await runs_of(made)) == 2


async def test_a_first_key_that_takes_long_is_not_waited_for_without_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that hangs does not hold the form's run, which says that it is still at work."""
    monkeypatch.setattr(deployments, "STARTS_WITHIN_SECONDS", 60.0)
    monkeypatch.setattr(deployments, "ENDS_WITHIN_SECONDS", 0.0)
    fields = await form(world, make_key_now=True)

    state, _ = await asyncio.gather(add(fields), conclude_next_run(fields["rotation_name"], Running()))

    assert state.is_completed(), state.message
    assert str(state.message).endswith("The run that creates its first key is still running.")


async def conclude_next_run(name: str, state: State[Any]) -> None:
    """Bring the next run of a rotation's deployment into a state, as a worker would."""
    while True:
        made = await deployed(name)
        waiting = [run for run in await runs_of(made) if run.state_name == "Scheduled"] if made else []
        if waiting:
            async with get_client() as client:
                await client.set_flow_run_state(waiting[0].id, state, force=True)
            return
        await asyncio.sleep(0.1)


async def test_the_form_leaves_no_secret_anywhere(world: World) -> None:
    """The parameters are references, and neither the artifact nor a variable holds what the blocks hold."""
    fields = await form(world)

    await add(fields)

    made = await deployed(fields["rotation_name"])
    assert made is not None
    everything = f"{made.model_dump_json()}{await shown(fields['rotation_name'])}"
    assert "sk-or-" not in everything
    assert await ledger_value(fields["rotation_name"]) is None


async def test_the_form_says_which_key_the_former_place_of_an_edited_block_holds(world: World) -> None:
    """Given a block that was edited since, the form names its former place, the key there, and when it ends."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/moves"]))
    block = world.make("vault-secret")
    await block.asave("moves", overwrite=True)
    await rotate(rotation, return_state=True)
    key = (await ledger_of(rotation.name)).current
    assert key is not None
    await block.model_copy(update={"path": f"{block.path}-moved"}).asave("moves", overwrite=True)

    state = await add({**await form(world), "rotation_name": rotation.name, "destinations": ["vault-secret/moves"]})

    assert str(state.message).endswith(
        f"The former place {block.place()} may still hold the key {key.label}, which ends 1 day after the next "
        "rotation: move its consumers before that."
    )
