"""The other deployments of a rotation, against a real Prefect server: plan, emergency, restore, apply, remove."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from httpx import HTTPStatusError
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Pending

from flows import apply_settings, remove_rotation, restore_key, retire, rotate
from flows.slot import slot_of
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.rotation import Retirement, Rotation
from tasks.world.api import OWN_TAG
from tasks.world.orchestrator import PrefectWorld
from tests.by_hand import end_overlap, ledger_of, ledger_value
from tests.e2e.conftest import Services, with_pages
from tests.e2e.driver import WAIT_SECONDS, attempt, begin_rotation, deploy, events, retirements_of
from tests.e2e.processes import HELD_SECONDS, traces, until_held

pytestmark = with_pages


async def ledger(rotation: Rotation) -> Ledger:
    """Return the rotation's ledger."""
    return await ledger_of(rotation.name)


async def artifact(key: str) -> str:
    """Return an artifact's content."""
    found = await Artifact.aget(key)
    return "" if found is None else str(found.data)


async def test_a_retirement_on_a_host_whose_clock_is_behind_comes_again_later_and_names_the_clock(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that clock nothing is due yet, and a run that is due at once would repeat this without end."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(hours=6)))
    for _ in range(2):
        assert (await rotate(rotation, return_state=True)).is_completed()
    await end_overlap(rotation.name)
    monkeypatch.setattr(PrefectWorld, "now", lambda _: datetime.now(UTC) - timedelta(minutes=5))

    state = await retire(rotation.name, return_state=True)

    [again] = [run for run in await retirements_of(rotation) if await is_for_the_end_of_the_overlap(rotation, run)]
    assert state.is_completed()
    assert str(state.message).startswith("Nothing was due")
    assert "seconds behind that of Prefect's server: set the one that is wrong." in str(state.message)
    assert again.next_scheduled_start_time is not None
    assert again.next_scheduled_start_time > datetime.now(UTC) + timedelta(minutes=4)


async def is_for_the_end_of_the_overlap(rotation: Rotation, run: FlowRun) -> bool:
    """Return whether a retirement was scheduled for the present end of the superseded key, not for its first one."""
    [key] = (await ledger(rotation)).superseded
    return key.revoke_at.isoformat() in str(run.idempotency_key)


async def test_a_plan_shows_what_a_run_would_do_and_changes_nothing(services: Services) -> None:
    """Connection and destination are checked, and neither a key nor a ledger nor a slot is created."""
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/planned"]))

    state = await rotate(rotation, plan_only=True, return_state=True)

    shown = await artifact(f"plan-{rotation.name}")
    assert state.is_completed()
    assert "Create a key named `checkout service`" in shown
    assert "can be read and written" in shown
    assert services.openrouter.created == []
    assert await ledger_value(rotation.name) is None
    async with get_client() as client:
        with pytest.raises(ObjectNotFound):
            await client.read_global_concurrency_limit_by_name(slot_of(rotation.name))


async def test_a_plan_of_what_cannot_work_fails_with_one_sentence(services: Services) -> None:
    """The sentence is that of a run, which no person has to start to see it."""
    rotation = await services.prepare(services.rotation())
    services.openrouter.accounts[0].management_keys.clear()

    state = await rotate(rotation, plan_only=True, return_state=True)

    assert state.is_failed()
    assert "does not accept the management key" in str(state.message)


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The slots that runs have requested so far, and whether Prefect has granted them."""
    answers: list[tuple[str, bool]] = []
    ask = PrefectClient.increment_concurrency_slots_with_lease

    async def asking(self: PrefectClient, names: list[str], *args: Any, **how: Any) -> Any:
        try:
            granted = await ask(self, names, *args, **how)
        except HTTPStatusError:
            answers.append((names[0], False))
            raise
        # For a slot that does not exist yet, Prefect answers without a limit.
        answers.append((names[0], bool(granted.json()["limits"])))
        return granted

    monkeypatch.setattr(PrefectClient, "increment_concurrency_slots_with_lease", asking)
    return answers


async def until_answered(slots: list[tuple[str, bool]], answer: tuple[str, bool]) -> None:
    """Wait until a run has got an answer about a slot."""
    deadline = time.monotonic() + WAIT_SECONDS
    while answer not in slots:
        assert time.monotonic() < deadline, f"only {slots}"
        await asyncio.sleep(0.02)


async def test_an_emergency_goes_before_a_run_that_waits(services: Services, slots: list[tuple[str, bool]]) -> None:
    """While one run is running and another one waits, the emergency comes next, and the waiting run after it."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=7)))
    await rotate(rotation, return_state=True)
    slot = slot_of(rotation.name)
    held = Fault("after", "POST", "/keys$", status=0, delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(held)
    order: list[str] = []
    left_by_emergency: list[int] = []

    async def run(name: str, **how: Any) -> None:
        state = await rotate(rotation, return_state=True, **how)
        order.append(f"{name} {state.name}")
        if how:
            left_by_emergency.append(len(services.openrouter.live_keys()))

    runs = [asyncio.create_task(run("at work"))]
    await until_held(held)
    runs.append(asyncio.create_task(run("waiting")))
    await until_answered(slots, (slot, False))
    runs.append(asyncio.create_task(run("emergency", emergency=True)))
    await until_answered(slots, (f"{slot}_emergency", True))
    held.delay = 0
    await asyncio.gather(*runs)

    assert order == ["at work Completed", "emergency Completed", "waiting Completed"]
    assert left_by_emergency == [1]


async def test_a_disabled_key_is_brought_back_from_vault(services: Services) -> None:
    """The former key is disabled, and restore-key gives it back to the consumers."""
    disable = Retirement(revoke="disable-then-delete")
    rotation = await services.prepare(
        services.rotation(destinations=["vault-secret/restored"], retirement=disable, overlap=timedelta(0))
    )
    await rotate(rotation, return_state=True)
    former = (await ledger(rotation)).current
    await rotate(rotation, return_state=True)
    assert former is not None
    disabled = services.openrouter.keys[former.hash].disabled

    state = await restore_key(rotation.name, return_state=True)

    now = (await ledger(rotation)).current
    assert disabled
    assert state.is_completed()
    assert now is not None
    assert now.hash == former.hash
    assert not services.openrouter.keys[former.hash].disabled


async def test_a_key_that_only_a_prefect_secret_held_cannot_be_brought_back(services: Services) -> None:
    """Prefect stores only the current value of a secret; restore-key says so, and changes nothing."""
    rotation = await services.prepare(
        services.rotation(retirement=Retirement(revoke="disable-then-delete"), overlap=timedelta(0))
    )
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)
    before = await traces(services, rotation)

    state = await restore_key(rotation.name, return_state=True)

    assert state.is_failed()
    assert "Vault keeps only the newest versions of a secret, and other stores keep none. Nothing was changed." in str(
        state.message
    )
    assert await traces(services, rotation) == before


async def test_a_postponed_retirement_is_shown_told_and_planned_anew(services: Services) -> None:
    """People learn label and usage of a key that is still in use, and a retirement is scheduled for the next check."""
    unused = Retirement(retire_when="unused", quiet_time=timedelta(hours=2), max_overlap=timedelta(days=7))
    # A store with check-and-set: no late write could make the run keep the key for another reason.
    rotation = await services.prepare(
        services.rotation(destinations=["vault-secret/postponed"], retirement=unused, overlap=timedelta(0))
    )
    await rotate(rotation, return_state=True)
    [former] = services.openrouter.live_keys()
    former.spent.append((datetime.now(UTC), Decimal("0.25")))
    former.last_used_at = datetime.now(UTC)

    state = await rotate(rotation, return_state=True)

    [postponed] = (await ledger(rotation)).superseded
    shown = await artifact(f"rotation-{rotation.name}")
    [told] = await events(rotation, Event.KEY_REVOCATION_POSTPONED)
    planned = [run.next_scheduled_start_time for run in await retirements_of(rotation) if run.state_name == "Scheduled"]
    assert state.is_completed()
    assert services.openrouter.is_live(former.secret)
    assert f"The superseded key {former.label} may still be used (spent 0.25 USD so far" in shown
    assert told["payload"]["key_label"] == former.label
    assert "0.25 USD" in told["payload"]["sentence"]
    assert planned == [postponed.revoke_at]
    assert postponed.revoke_at > datetime.now(UTC)


async def test_settings_of_the_deployment_reach_the_current_key(services: Services) -> None:
    """apply-settings reads the rotation's deployment, and changes the limit of the current key."""
    rotation = await services.prepare(services.rotation())
    await rotate(rotation, return_state=True)
    key = rotation.key.model_copy(update={"limit_usd": 75})
    await deploy(rotation.model_copy(update={"key": key}))

    state = await apply_settings(rotation.name, return_state=True)

    assert state.is_completed()
    assert [live.limit for live in services.openrouter.live_keys()] == [75]


async def test_settings_without_a_deployment_are_told_plainly(services: Services) -> None:
    """Without a deployment, there are no settings to apply."""
    state = await apply_settings("nowhere", return_state=True)

    assert state.is_failed()
    assert "there is no deployment rotate/nowhere. Nothing was changed." in str(state.message)


async def test_a_removed_rotation_leaves_nothing_behind(services: Services) -> None:
    """Deployment, schedule, scheduled retirements, ledger and keys no longer exist."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=1)))
    await deploy(rotation)
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)

    state = await remove_rotation(rotation.name, rotation.name, return_state=True)

    assert state.is_completed()
    assert services.openrouter.live_keys() == []
    assert await ledger_value(rotation.name) is None
    async with get_client() as client:
        with pytest.raises(ObjectNotFound):
            await client.read_deployment_by_name(f"rotate/{rotation.name}")
    assert {run.state_name for run in await retirements_of(rotation)} == {"Cancelled"}


async def test_removing_a_rotation_called_like_the_tag_cancels_no_other_ones_retirement(services: Services) -> None:
    """The retirements of all rotations have the tag `key-rotation`, which is a valid rotation name, too."""
    one_day = timedelta(days=1)
    other, named = services.rotation(overlap=one_day), services.rotation(name=OWN_TAG, overlap=one_day)
    for rotation in (other, named):
        await services.prepare(rotation)
        await rotate(rotation, return_state=True)
        await rotate(rotation, return_state=True)

    state = await remove_rotation(OWN_TAG, OWN_TAG, return_state=True)

    assert state.is_completed()
    assert {run.state_name for run in await retirements_of(other)} == {"Scheduled"}
    own = [run for run in await retirements_of(named) if run.parameters["rotation"] == OWN_TAG]
    assert {run.state_name for run in own} == {"Cancelled"}


@pytest.mark.parametrize("cancelled", [False, True], ids=["still to come", "cancelled by a person"])
async def test_an_older_key_of_a_removed_rotation_has_its_retirement(services: Services, cancelled: bool) -> None:
    """After the removal, no other run would revoke the key."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=1)))
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)
    if cancelled:
        await cancel_all(await retirements_of(rotation))

    state = await remove_rotation(rotation.name, rotation.name, "keep", return_state=True)

    to_come = [run for run in await retirements_of(rotation) if run.state_name == "Scheduled"]
    assert state.is_completed()
    assert [run.next_scheduled_start_time for run in to_come] == [(await ledger(rotation)).superseded[0].revoke_at]


async def cancel_all(runs: list[FlowRun]) -> None:
    """Cancel scheduled runs, as a person does in the dashboard."""
    async with get_client() as client:
        for run in runs:
            await client.set_flow_run_state(run.id, Cancelled())


async def test_a_kept_key_ends_on_its_date(services: Services) -> None:
    """keep-until reads the date as the form sends it, and schedules the revocation."""
    rotation = await services.prepare(services.rotation())
    await rotate(rotation, return_state=True)
    until = (datetime.now(UTC) + timedelta(days=10)).replace(microsecond=0)

    state = await remove_rotation(rotation.name, rotation.name, "keep-until", until.isoformat(), return_state=True)

    assert state.is_completed()
    assert len(services.openrouter.live_keys()) == 1
    assert [key.revoke_at for key in (await ledger(rotation)).superseded] == [until]
    assert [run.next_scheduled_start_time for run in await retirements_of(rotation)] == [until]


async def test_a_run_is_named_and_tagged_by_itself_however_it_was_started(services: Services) -> None:
    """A deployment made by hand gives its runs neither name nor tags; a name from a person is kept."""
    rotation = await services.prepare(services.rotation())
    begun = await begin_rotation(rotation)
    async with get_client() as client:
        await client.update_flow_run(begun, tags=["by-hand"])
        named = await begin_rotation(rotation)
        await client.update_flow_run(named, name="Before the audit")

    for run_id in (begun, named):
        await attempt(run_id)

    async with get_client() as client:
        first, second = [await client.read_flow_run(run_id) for run_id in (begun, named)]
    assert (first.name, set(first.tags)) == (f"rotate {rotation.name}", {"by-hand", rotation.name})
    assert (second.name, rotation.name in second.tags) == ("Before the audit", True)


async def test_a_removal_that_is_not_confirmed_changes_nothing(services: Services) -> None:
    """Nothing happens unless the name is typed a second time."""
    rotation = await services.prepare(services.rotation())
    await rotate(rotation, return_state=True)

    state = await remove_rotation(rotation.name, "yes", return_state=True)

    assert state.is_failed()
    assert str(state.message).startswith("confirm_name: ")
    assert len(services.openrouter.live_keys()) == 1


async def test_a_run_that_waited_while_its_rotation_was_removed_does_not_bring_it_back(services: Services) -> None:
    """The run finds neither a ledger nor a deployment, so it creates no key that would never be rotated."""
    rotation = await services.prepare(services.rotation())
    deployment_id = await deploy(rotation)
    async with get_client() as client:
        waiting = await client.create_flow_run_from_deployment(deployment_id)
        await client.set_flow_run_state(waiting.id, Pending())
        await client.delete_deployment(deployment_id)
        waiting = await client.read_flow_run(waiting.id)

    running: Any = run_flow(rotate, waiting, {"rotation": rotation}, return_type="state")
    state = await running

    assert "it was removed while this run waited" in str(state.message)
    assert services.openrouter.created == []
