"""A person's work in the dashboard, in a real browser with a real server and a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Page, expect
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.exceptions import ObjectNotFound

import blocks
from blocks.vault.auth import TokenAuth
from flows import check_connections, overview, rotate
from flows.add_rotation import CORRECT_IT
from flows.deployments import save_deployment
from sandbox.server import Fault, running
from sandbox.setup import SECRET
from sandbox.stack import free_port
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.model.rotation import KeySettings, Retirement, Rotation
from tasks.model.schedules import parse_timetable
from tasks.model.tries import TRIES_AGAIN
from tasks.world.deployments import accepts_zone, schedule_of
from tasks.world.inventory import read_deployments
from tests.browser.conftest import IN_TIME, Picture, pytestmark  # noqa: F401 - the marks apply to this module
from tests.browser.dashboard import (
    choose,
    deployment,
    field,
    fill_in,
    open_artifact,
    open_form,
    open_new_block,
    open_run,
    pick,
    press_run,
    press_switch,
    save,
    submit,
)
from tests.by_hand import edit_ledger, ledger_of
from tests.e2e.conftest import Services
from tests.e2e.driver import ended
from tests.e2e.processes import check_one_key

expect.set_options(timeout=IN_TIME)


@pytest.fixture
async def services(services: Services) -> AsyncIterator[Services]:
    """The stand-ins, with Vault on its default port if that is free, and no rotation yet."""
    await forget_all_rotations()
    with running(services.vault_app, port := free_port(8200)):
        services.vault_url = f"http://localhost:{port}"
        yield services


async def place(services: Services, name: str) -> None:
    """Create a Vault block whose secret does not exist yet."""
    credentials = blocks.VaultCredentials(url=services.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    await blocks.VaultSecret(credentials=credentials, path=f"apps/{name}").asave(name, overwrite=True)


async def deploy(services: Services, name: str, *, days: int = 0, **changes: Any) -> Rotation:
    """Create a rotation to Vault with a deployment and a key that is `days` old."""
    await place(services, name)
    rotation = services.rotation(**{"name": name, "destinations": [f"vault-secret/{name}"], **changes})
    table, now = parse_timetable(30, "03:30", "Europe/Berlin", accepts_zone), datetime.now(UTC) - timedelta(days=days)
    await save_deployment(None, rotation, schedule_of(table, table.next_rotation(now, now)), active=True)
    assert (await rotate(rotation, return_state=True)).is_completed()
    ledger = await ledger_of(name)
    assert ledger.current is not None
    aged = ledger.model_copy(update={"current": ledger.current.model_copy(update={"since": now})})
    await edit_ledger(name, aged.to_json())
    return rotation


async def held(name: str) -> str:
    """Return the key that a Vault secret holds."""
    secret: Any = await blocks.VaultSecret.aload(name)
    return str((await secret.read_secret()).decode())


async def test_a_new_block_is_made_in_its_form(services: Services, page: Page, picture: Picture) -> None:
    """The forms explain the fields and show a logo, and the saved blocks work."""
    for block in (blocks.VaultSecret, blocks.VaultCredentials):
        with suppress(ValueError):
            await block.adelete("checkout")
    await open_new_block(page, blocks.VaultCredentials)
    await expect(page.get_by_text("A login to HashiCorp Vault")).to_be_visible()
    await page.get_by_label("Name", exact=True).fill("checkout")
    await page.get_by_label("URL", exact=True).fill(services.vault_url)
    await page.get_by_role("tab", name="AppRole").click()
    await expect(page.get_by_label("Secret ID")).to_be_visible()
    await picture("new-login", 1300)
    await page.get_by_role("tab", name="Token").click()
    await page.get_by_label("Token", exact=True).last.fill(ROOT_TOKEN)
    await save(page, "vault-credentials/checkout")

    await open_new_block(page, blocks.VaultSecret)
    await page.get_by_label("Name", exact=True).fill("checkout")
    await pick(page, page.locator("body"), "checkout")
    await page.get_by_label("Path", exact=True).fill("apps/checkout")
    logo = page.locator("img.size-14")
    await expect(page.get_by_text("One field of a secret in HashiCorp Vault's KV version 2 engine.")).to_be_visible()
    await expect(logo).to_have_attribute("src", str(blocks.VaultSecret._logo_url))
    await expect(logo).to_have_js_property("complete", value=True)
    assert await logo.evaluate("image => image.naturalWidth") > 0
    await picture("new-block", 700)
    await save(page, "vault-secret/checkout")

    made: Any = await blocks.VaultSecret.aload("checkout")
    assert (made.mount, made.path, made.field) == ("secret", "apps/checkout", "value")
    assert "apps/checkout" in await made.check()


async def test_a_person_fills_the_form_in_and_a_key_is_there(services: Services, page: Page, picture: Picture) -> None:
    """The form leads to a working key at the destination, without any YAML."""
    await place(services, "checkout")
    await fill_in(page, "checkout")
    await picture("add-rotation", 2700)

    run = await submit(page, "add-rotation/add-rotation")

    [key] = services.openrouter.live_keys()
    assert run.state_name == "Completed", run.state
    assert await held("checkout") == key.secret
    assert key.limit == 50
    assert (await deployment("rotate/checkout")).parameters["rotation"]["destinations"] == ["vault-secret/checkout"]


async def test_the_form_changes_a_rotation_and_shows_the_difference(
    services: Services, page: Page, picture: Picture
) -> None:
    """The name of an existing rotation updates it, and the artifact shows only the values that changed."""
    key = KeySettings(name="newsletter service", limit_usd=Decimal(50))
    rotation = await deploy(services, "newsletter", days=4, key=key, overlap=timedelta(hours=24))
    await fill_in(page, rotation.name, days=7, usd=80)

    run = await submit(page, "add-rotation/add-rotation")

    assert run.state_name == "Completed", run.state
    await open_artifact(page, f"add-rotation-{rotation.name}")
    await expect(page.get_by_role("heading", name="Changes")).to_be_visible()
    await expect(page.get_by_role("row").filter(has_text="Limit (USD)")).to_have_text("Limit (USD)5080")
    await expect(page.get_by_role("row").filter(has_text="Schedule")).to_contain_text("every 7 days at 03:30")
    await expect(page.get_by_role("row").filter(has_text="Connection")).to_be_hidden()
    await picture("changed-rotation", 605)
    assert len(services.openrouter.created) == 1


HELP = "Help: docs/how-to/troubleshooting.md#a-setting-is-refused"


async def test_a_field_that_is_wrong_is_told_in_one_sentence(services: Services, page: Page, picture: Picture) -> None:
    """The run's page names the field and what it requires, and nothing was created."""
    await place(services, "reports")
    await fill_in(page, "reports", time_zone="Berlin")

    run = await submit(page, "add-rotation/add-rotation")

    await open_run(page, run.id)
    await page.get_by_role("tab", name="Details").click()
    told = f"time_zone: must be an IANA time zone, such as Europe/Berlin. Nothing was created. {CORRECT_IT} {HELP}"
    await expect(page.get_by_text(told, exact=True).first).to_be_visible()
    assert services.openrouter.created == []
    with pytest.raises(ObjectNotFound):
        await deployment("rotate/reports")


async def test_the_form_of_a_rotation_runs_it_once_with_other_settings(services: Services, page: Page) -> None:
    """A custom run shows every setting in its group with a readable title, and uses the entered values."""
    rotation = await deploy(services, "inventory", overlap=timedelta(hours=6))
    name = f"rotate/{rotation.name}"
    await open_form(page, name)
    for group, title in [("Key", "Limit (USD)"), ("Retirement", "Revoke by")]:
        await expect(field(page, group).get_by_text(f"{title} (Optional)", exact=True)).to_be_visible()
    await expect(page.get_by_text("Spending limit of the key in US dollars. Empty means no limit.")).to_be_visible()
    await field(page, "Overlap").get_by_role("textbox").fill("PT0S")

    run = await submit(page, name)

    assert run.state_name == "Completed", run.state
    assert len(services.openrouter.created) == 2
    await check_one_key(services, rotation)


async def test_retry_finishes_a_rotation_that_vault_had_stopped(
    services: Services, page: Page, picture: Picture
) -> None:
    """The failed run's page explains the failure in one sentence, and Retry completes it without another new key."""
    await services.prepare(services.rotation(destinations=["secret/billing"]))
    rotation = await deploy(services, "billing", destinations=["vault-secret/billing", "secret/billing"])
    old = await held(rotation.name)
    services.vault_app.state.faults.add(Fault(method="POST", path="/data/", status=503, body='{"errors":["down"]}'))

    run_id = await press_run(page, f"rotate/{rotation.name}")
    failed = await ended(run_id)
    await open_run(page, run_id)
    await page.get_by_role("tab", name="Details").click()
    await expect(page.get_by_text("Could not publish the new key: Vault at").first).to_be_visible()
    await expect(page.get_by_text("Retry is safe;").first).to_be_visible()
    await page.get_by_role("button", name="Open menu").first.click()
    await expect(page.get_by_role("menuitem", name="Retry")).to_be_visible()
    await picture("failed-run", 1180)
    await open_run(page, run_id)
    held_after_failure = await held(rotation.name)
    services.vault_app.state.faults.clear()
    await choose(page, "Retry")
    healed = await ended(run_id, attempt=2)

    assert (failed.state_name, healed.state_name) == (TRIES_AGAIN, "Completed")
    assert held_after_failure == old
    assert len(services.openrouter.created) == 2
    await check_one_key(services, rotation)


async def test_pausing_stops_auto_rotation_and_not_people(services: Services, page: Page) -> None:
    """Without an active schedule, a rotation has no scheduled runs, but a person can still run it."""
    rotation = await deploy(services, "search")
    name = f"rotate/{rotation.name}"
    await until_scheduled(name, some=True)

    await press_switch(page, name, switch="toggle every 30 days")

    await expect(page.get_by_role("switch", name="toggle every 30 days")).not_to_be_checked()
    await until_scheduled(name, some=False)
    run_id = await press_run(page, name)
    assert (await ended(run_id)).state_name == "Completed"
    assert len(services.openrouter.created) == 2


async def test_a_run_cancelled_in_mid_rotation_is_cleaned_up_by_the_next(services: Services, page: Page) -> None:
    """After Cancel, the destination still has a working key, and the next run leaves exactly one live key."""
    rotation = await deploy(services, "support")
    old = await held(rotation.name)
    services.vault_app.state.faults.add(Fault(method="POST", path="/data/", delay=60, status=503))
    run_id = await press_run(page, f"rotate/{rotation.name}")
    while len(services.openrouter.created) < 2:  # noqa: ASYNC110 - the new key exists, and its publication hangs
        await asyncio.sleep(0.1)
    await open_run(page, run_id)

    await choose(page, "Cancel")
    cancelled = await ended(run_id)

    assert cancelled.state_name == "Cancelled"
    assert services.openrouter.is_live(old)
    services.vault_app.state.faults.clear()
    assert await held(rotation.name) == old
    assert (await rotate(rotation, return_state=True)).is_completed()
    await check_one_key(services, rotation)


async def test_the_rotation_of_the_tutorial_is_seen(services: Services, page: Page, picture: Picture) -> None:
    """The page of the first run shows its steps, and the artifact shows the key that the second run superseded."""
    rotation = services.rotation(name="example", destinations=[f"secret/{SECRET}"], overlap=timedelta(days=1))
    table, now = parse_timetable(30, "03:30", "Europe/Berlin", accepts_zone), datetime.now(UTC)
    await save_deployment(None, rotation, schedule_of(table, table.next_rotation(now, now)), active=False)

    first = await press_run(page, "rotate/example")
    assert (await ended(first)).state_name == "Completed"
    await open_run(page, first)
    await expect(page.get_by_text("rotate example").first).to_be_visible()
    await expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    await picture("flow-run", 560)
    second = await press_run(page, "rotate/example")
    assert (await ended(second)).state_name == "Completed"
    await open_artifact(page, "rotation-example")

    await expect(page.get_by_text("superseded").first).to_be_visible()
    await picture("rotation-artifact")


async def test_cancelling_a_retirement_keeps_the_old_key_alive(
    services: Services, page: Page, picture: Picture
) -> None:
    """The old key stays live, and the overview says why."""
    broken = await deploy(services, "billing", days=30)
    for name, days in [("checkout", 12), ("search", 3)]:
        await deploy(services, name, days=days)
    rotation = await deploy(services, "mailing", days=30, overlap=timedelta(hours=6))
    old = await held(rotation.name)
    assert (await rotate(rotation, return_state=True)).is_completed()
    await open_run(page, await retirement(rotation))

    await choose(page, "Cancel")

    await expect(page.get_by_text("Cancelled").first).to_be_visible()
    services.vault_app.state.faults.add(Fault(method="POST", path="/data/", status=503, body='{"errors":["down"]}'))
    assert (await rotate(broken, return_state=True)).is_failed()
    await overview(return_state=True)
    await overview_shows(page, "kept: retirement cancelled")
    await picture("key-rotations", 1100)
    assert services.openrouter.is_live(old)


async def test_a_postponed_retirement_is_seen_and_can_be_cancelled(services: Services, page: Page) -> None:
    """The key is shown as still in use, with a scheduled next check; cancelling that check keeps the key live."""
    unused = Retirement(retire_when="unused", quiet_time=timedelta(hours=2), max_overlap=timedelta(days=7))
    rotation = await deploy(services, "partners", retirement=unused)
    [used] = services.openrouter.live_keys()
    used.spent.append((datetime.now(UTC), Decimal("0.25")))
    used.last_used_at = datetime.now(UTC)
    assert (await rotate(rotation, return_state=True)).is_completed()
    await open_artifact(page, f"rotation-{rotation.name}")
    await expect(page.get_by_text(f"The superseded key {used.label} may still be used").first).to_be_visible()
    await overview(return_state=True)
    await overview_shows(page, f"{used.label} next check")
    run_id = await retirement(rotation)
    await open_run(page, run_id)
    await expect(page.get_by_text("Scheduled", exact=True).first).to_be_visible()

    await choose(page, "Cancel")

    assert (await ended(run_id, attempt=0)).state_name == "Cancelled"
    await check_connections(return_state=True)
    await overview_shows(page, f"{used.label} kept: retirement cancelled")
    assert services.openrouter.is_live(used.secret)


async def overview_shows(page: Page, text: str) -> None:
    """Open the overview until it shows a text, because a refresh creates a new artifact with another address."""
    for last in (False, False, False, True):
        await open_artifact(page, "key-rotations")
        try:
            await expect(page.get_by_text(text).first).to_be_visible(timeout=IN_TIME / 4)
        except AssertionError:
            if last:
                raise
        else:
            return


async def retirement(rotation: Rotation) -> UUID:
    """Return the scheduled retirement of a rotation's older key."""
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


async def forget_all_rotations() -> None:
    """Delete all deployments and variables of other tests, which use the same names with other accounts."""
    async with get_client() as client:
        for each in await read_deployments():
            await client.delete_deployment(UUID(each["id"]))
        for variable in await client.read_variables():
            await client.delete_variable_by_name(variable.name)
