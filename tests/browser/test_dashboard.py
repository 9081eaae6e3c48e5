"""What people do in the dashboard, in a real browser against a real server and a real worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from playwright.async_api import Page, expect
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

import blocks
from flows import check_connections, rotate
from flows.deployments import save_deployment
from sandbox.server import Fault
from tasks.rotation import Rotation
from tasks.schedules import parse_timetable
from tests.browser.conftest import IN_TIME, Picture, pytestmark  # noqa: F401 - the marks apply to this module
from tests.browser.dashboard import (
    choose,
    deployment,
    field,
    new_run,
    open_form,
    open_run,
    pick,
    press_run,
    press_switch,
)
from tests.e2e.conftest import World
from tests.e2e.driver import ended

expect.set_options(timeout=IN_TIME)


async def deploy(world: World, name: str, **changes: Any) -> Rotation:
    """Make a rotation to Vault with a key and a deployment, as an earlier day left it."""
    changes = {"name": name, "destinations": [f"vault-secret/{name}"], **changes}
    rotation = await world.prepare(world.rotation(**changes))
    table, now = parse_timetable(30, "03:30", "Europe/Berlin"), datetime.now(UTC)
    await save_deployment(None, rotation, table.schedule(table.next_rotation(now, now)), active=True)
    assert (await rotate(rotation, return_state=True)).is_completed()
    return rotation


async def held(rotation: Rotation) -> str:
    """The key that the rotation's Vault secret holds."""
    secret: Any = await blocks.VaultSecret.aload(rotation.destinations[0].partition("/")[2])
    return str((await secret.read_secret()).decode())


async def test_a_person_fills_the_form_in_and_a_key_is_there(world: World, page: Page, picture: Picture) -> None:
    """From the form to a working key at the destination, without a line of YAML."""
    rotation = await world.prepare(world.rotation(name="checkout", destinations=["vault-secret/checkout"]))
    await page.set_viewport_size({"width": 1280, "height": 2300})
    await open_form(page, "add-rotation/add-rotation")

    await pick(page, field(page, "connection"), "openrouter")
    await field(page, "time_zone").get_by_role("textbox").fill("Europe/Berlin")
    await field(page, "key_name").get_by_role("textbox").fill("checkout service")
    await field(page, "limit_usd").get_by_role("tab", name="float").click()
    await field(page, "limit_usd").get_by_role("spinbutton").fill("50")
    await field(page, "destinations").get_by_role("button", name="Add item").click()
    await page.get_by_role("tab", name="VaultSecret").click()
    await pick(page, page.locator("body"), "checkout")
    await field(page, "rotation_name").get_by_role("textbox").fill("checkout")
    await picture("add-rotation")
    run = await ended(await new_run("add-rotation/add-rotation", page.get_by_role("button", name="Submit").click))
    [key] = world.openrouter.live_keys()
    assert run.state_name == "Completed", run.state
    assert await held(rotation) == key.secret
    assert key.limit == 50
    assert (await deployment("rotate/checkout")).parameters["rotation"]["destinations"] == rotation.destinations


async def test_retry_finishes_a_rotation_that_vault_had_stopped(world: World, page: Page, picture: Picture) -> None:
    """The failed run's page says in one sentence what failed; Retry there finishes it without a second key."""
    rotation = await deploy(world, "billing", destinations=["vault-secret/billing", "secret/billing"])
    old = await held(rotation)
    world.vault_app.state.faults.add(Fault(method="POST", path="/data/", status=503, body='{"errors":["down"]}'))

    run_id = await press_run(page, f"rotate/{rotation.name}")
    failed = await ended(run_id)
    await open_run(page, run_id)
    await page.get_by_role("tab", name="Details").click()
    await expect(page.get_by_text("publish failed: Vault at").first).to_be_visible()
    await expect(page.get_by_text("Retry is safe.").first).to_be_visible()
    await page.get_by_text("Retry is safe.").last.scroll_into_view_if_needed()
    await picture("failed-run")
    held_after_failure = await held(rotation)
    world.vault_app.state.faults.clear()
    await choose(page, "Retry")
    healed = await ended(run_id, attempt=2)

    assert (failed.state_name, healed.state_name) == ("Failed", "Completed")
    assert held_after_failure == old
    assert len(world.openrouter.created) == 2
    assert [key.secret for key in world.openrouter.live_keys()] == [await held(rotation)]


async def test_pausing_stops_auto_rotation_and_not_people(world: World, page: Page, picture: Picture) -> None:
    """With its schedule switched off a rotation has no scheduled run any more; a run by hand works."""
    rotation = await deploy(world, "search")
    name = f"rotate/{rotation.name}"
    await until_scheduled(name, some=True)

    await press_switch(page, name, switch="toggle every 30 days")

    await expect(page.get_by_role("switch", name="toggle every 30 days")).not_to_be_checked()
    await until_scheduled(name, some=False)
    run_id = await press_run(page, name)
    assert (await ended(run_id)).state_name == "Completed"
    assert len(world.openrouter.created) == 2
    await open_run(page, run_id)
    await expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    await picture("flow-run")


async def test_a_run_cancelled_in_mid_rotation_is_cleaned_up_by_the_next(world: World, page: Page) -> None:
    """Cancelling leaves every destination with a working key, and the next run leaves exactly one key alive."""
    rotation = await deploy(world, "support")
    old = await held(rotation)
    world.vault_app.state.faults.add(Fault(method="POST", path="/data/", delay=60, status=503))
    run_id = await press_run(page, f"rotate/{rotation.name}")
    while len(world.openrouter.created) < 2:  # noqa: ASYNC110 - the new key is made, and its publication hangs
        await asyncio.sleep(0.1)
    await open_run(page, run_id)

    await choose(page, "Cancel")
    cancelled = await ended(run_id)

    assert cancelled.state_name == "Cancelled"
    assert world.openrouter.is_live(old)
    world.vault_app.state.faults.clear()
    assert await held(rotation) == old
    assert (await rotate(rotation, return_state=True)).is_completed()
    assert [key.secret for key in world.openrouter.live_keys()] == [await held(rotation)]


async def test_cancelling_a_retirement_keeps_the_old_key_alive(world: World, page: Page, picture: Picture) -> None:
    """The old key lives on, and the overview says so."""
    rotation = await deploy(world, "mailing", overlap=timedelta(hours=6))
    old = await held(rotation)
    assert (await rotate(rotation, return_state=True)).is_completed()
    await open_run(page, await retirement(rotation))

    await choose(page, "Cancel")

    await expect(page.get_by_text("Cancelled").first).to_be_visible()
    await check_connections(return_state=True)
    overview: Any = await Artifact.get("key-rotations")
    await page.goto(f"artifacts/artifact/{overview.id}")
    await expect(page.get_by_text("kept alive: its retirement was cancelled").first).to_be_visible()
    await picture("key-rotations")
    own: Any = await Artifact.get(f"rotation-{rotation.name}")
    await page.goto(f"artifacts/artifact/{own.id}")
    await expect(page.get_by_text("superseded").first).to_be_visible()
    await picture("rotation-artifact")
    assert world.openrouter.is_live(old)


async def retirement(rotation: Rotation) -> UUID:
    """The scheduled retirement of a rotation's older key."""
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[rotation.name, "key-rotation"]))
        )
    return next(run.id for run in runs if run.name == f"retire {rotation.name}")


async def until_scheduled(name: str, *, some: bool) -> None:
    """Wait until a deployment has scheduled runs, or none."""
    ids = [(await deployment(name)).id]
    async with get_client() as client:
        for _ in range(300):
            if bool(await client.get_scheduled_flow_runs_for_deployments(ids)) is some:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"{name} has {'no' if some else 'still'} scheduled runs")
