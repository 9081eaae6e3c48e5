"""The deployments around a rotation, against a real Prefect server: plan, emergency, restore, apply, remove."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Pending
from prefect.variables import Variable

from flows import apply_settings, remove_rotation, restore_key, rotate
from sandbox.server import Fault
from tasks.ledger import Ledger, ledger_variable
from tasks.rotation import Retirement, Rotation
from tests.e2e.conftest import World, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.processes import until_held


async def ledger(rotation: Rotation) -> Ledger:
    """The rotation's ledger."""
    return Ledger.model_validate(await Variable.aget(ledger_variable(rotation.name)))


async def deploy(rotation: Rotation) -> UUID:
    """A deployment of the rotation with a schedule, as a person makes it."""
    deployment = await rotate.ato_deployment(
        name=rotation.name,
        parameters={"rotation": rotation.model_dump(mode="json")},
        work_pool_name="key-rotation",
        interval=timedelta(days=30),
    )
    return await deployment.aapply()


async def artifact(key: str) -> str:
    """What an artifact shows."""
    found = await Artifact.get(key)
    return "" if found is None else str(found.data)


async def test_a_plan_shows_what_a_run_would_do_and_changes_nothing(world: World) -> None:
    """Connection and destination are tried; no key, no ledger and no slot comes of it."""
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/planned"]))

    state = await rotate(rotation, plan_only=True, return_state=True)

    shown = await artifact(f"rotation-{rotation.name}-plan")
    assert state.is_completed()
    assert "Create a key named `checkout service`" in shown
    assert "can be read and written" in shown
    assert world.openrouter.created == []
    assert await Variable.aget(ledger_variable(rotation.name)) is None
    async with get_client() as client:
        with pytest.raises(ObjectNotFound):
            await client.read_global_concurrency_limit_by_name(f"key-rotation-{rotation.name}")


async def test_a_plan_of_what_cannot_work_fails_with_one_sentence(world: World) -> None:
    """The same sentence as a run's, before anybody runs it."""
    rotation = await world.prepare(world.rotation())
    world.openrouter.accounts[0].management_keys.clear()

    state = await rotate(rotation, plan_only=True, return_state=True)

    assert state.is_failed()
    assert "does not accept the management key" in str(state.message)


@pytest.mark.timeout(200)
async def test_an_emergency_goes_before_a_run_that_waits(world: World) -> None:
    """While one run is at work and another waits, an emergency comes next, and the waiting one after it."""
    rotation = await world.prepare(world.rotation(overlap=timedelta(days=7)))
    await rotate(rotation, return_state=True)
    held = world.openrouter_app.state.faults.add(Fault("after", "POST", "/keys$", status=0, delay=10, times=1))
    order: list[str] = []

    async def run(name: str, **how: Any) -> None:
        state = await rotate(rotation, return_state=True, **how)
        order.append(f"{name} {state.name}")

    at_work = asyncio.create_task(run("at work"))
    await until_held(world.openrouter_app, held)
    waiting = asyncio.create_task(run("waiting"))
    await asyncio.sleep(1)
    await run("emergency", emergency=True)
    after_emergency = len(world.openrouter.live_keys())
    await asyncio.gather(at_work, waiting)

    assert order == ["at work Completed", "emergency Completed", "waiting Completed"]
    assert after_emergency == 1


async def test_a_disabled_key_is_brought_back_from_vault(world: World) -> None:
    """The former key is disabled, and restore-key lets consumers have it again."""
    disable = Retirement(revoke="disable-then-delete")
    rotation = await world.prepare(
        world.rotation(destinations=["vault-secret/restored"], retirement=disable, overlap=timedelta(0))
    )
    await rotate(rotation, return_state=True)
    former = (await ledger(rotation)).current
    await rotate(rotation, return_state=True)
    assert former is not None
    disabled = world.openrouter.keys[former.hash].disabled

    state = await restore_key(rotation.name, return_state=True)

    now = (await ledger(rotation)).current
    assert disabled
    assert state.is_completed()
    assert now is not None
    assert now.hash == former.hash
    assert not world.openrouter.keys[former.hash].disabled


async def test_settings_of_the_deployment_reach_the_current_key(world: World) -> None:
    """apply-settings reads the rotation's deployment, and changes the limit of the key in use."""
    rotation = await world.prepare(world.rotation())
    await rotate(rotation, return_state=True)
    key = rotation.key.model_copy(update={"limit_usd": 75})
    await deploy(rotation.model_copy(update={"key": key}))

    state = await apply_settings(rotation.name, return_state=True)

    assert state.is_completed()
    assert [live.limit for live in world.openrouter.live_keys()] == [75]


async def test_settings_without_a_deployment_are_told_plainly(world: World) -> None:
    """There is nothing to apply where no deployment says anything."""
    state = await apply_settings("nowhere", return_state=True)

    assert state.is_failed()
    assert "there is no deployment rotate/nowhere. Nothing was changed." in str(state.message)


async def test_a_removed_rotation_leaves_nothing_behind(world: World) -> None:
    """Deployment, schedule, planned retirements, ledger and keys are gone."""
    world.stack.cli("deploy", "--name", "retire", "--no-prompt")
    rotation = await world.prepare(world.rotation(overlap=timedelta(days=1)))
    await deploy(rotation)
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)

    state = await remove_rotation(rotation.name, rotation.name, return_state=True)

    assert state.is_completed()
    assert world.openrouter.live_keys() == []
    assert await Variable.aget(ledger_variable(rotation.name)) is None
    async with get_client() as client:
        with pytest.raises(ObjectNotFound):
            await client.read_deployment_by_name(f"rotate/{rotation.name}")
        tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[rotation.name]))
        assert {run.state_name for run in await client.read_flow_runs(flow_run_filter=tags)} == {"Cancelled"}


@pytest.mark.parametrize("cancelled", [False, True], ids=["still to come", "cancelled by a person"])
async def test_an_older_key_of_a_removed_rotation_has_its_retirement(world: World, cancelled: bool) -> None:
    """No later run of the rotation would end it."""
    world.stack.cli("deploy", "--name", "retire", "--no-prompt")
    rotation = await world.prepare(world.rotation(overlap=timedelta(days=1)))
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)
    if cancelled:
        await cancel_all(await retirements(rotation))

    state = await remove_rotation(rotation.name, rotation.name, "keep", return_state=True)

    to_come = [run for run in await retirements(rotation) if run.state_name == "Scheduled"]
    assert state.is_completed()
    assert [run.next_scheduled_start_time for run in to_come] == [(await ledger(rotation)).superseded[0].revoke_at]


async def retirements(rotation: Rotation) -> list[FlowRun]:
    """The retirements of a rotation, whatever their states are."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[rotation.name]))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=tags)


async def cancel_all(runs: list[FlowRun]) -> None:
    """Cancel scheduled runs, as a person does in the dashboard."""
    async with get_client() as client:
        for run in runs:
            await client.set_flow_run_state(run.id, Cancelled())


async def test_a_kept_key_ends_on_its_date(world: World) -> None:
    """keep-until takes the date as the form sends it, and plans the revocation."""
    world.stack.cli("deploy", "--name", "retire", "--no-prompt")
    rotation = await world.prepare(world.rotation())
    await rotate(rotation, return_state=True)
    until = (datetime.now(UTC) + timedelta(days=10)).replace(microsecond=0)

    state = await remove_rotation(rotation.name, rotation.name, "keep-until", until.isoformat(), return_state=True)  # type: ignore[call-overload]

    assert state.is_completed()
    assert len(world.openrouter.live_keys()) == 1
    assert [key.revoke_at for key in (await ledger(rotation)).superseded] == [until]
    assert [run.next_scheduled_start_time for run in await retirements(rotation)] == [until]


async def test_a_removal_that_is_not_confirmed_changes_nothing(world: World) -> None:
    """Without the name typed once more nothing happens."""
    rotation = await world.prepare(world.rotation())
    await rotate(rotation, return_state=True)

    state = await remove_rotation(rotation.name, "yes", return_state=True)

    assert state.is_failed()
    assert str(state.message).startswith("confirm_name: ")
    assert len(world.openrouter.live_keys()) == 1


async def test_a_run_that_waited_while_its_rotation_was_removed_does_not_bring_it_back(world: World) -> None:
    """It finds no ledger, and no deployment either, so it makes no key that nobody would ever rotate."""
    rotation = await world.prepare(world.rotation())
    deployment_id = await deploy(rotation)
    async with get_client() as client:
        waiting = await client.create_flow_run_from_deployment(deployment_id)
        await client.set_flow_run_state(waiting.id, Pending())
        await client.delete_deployment(deployment_id)
        waiting = await client.read_flow_run(waiting.id)

    state = await run_flow(rotate, waiting, {"rotation": rotation}, return_type="state")

    assert "it was removed while this run waited" in str(state.message)
    assert world.openrouter.created == []
