"""A person's actions in Prefect's dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from playwright.async_api import Locator, Page, Response, expect
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.blocks.core import Block
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from sandbox.setup import CONNECTION
from tests.e2e.driver import ended

ATTEMPTS, LOOKS = 3, 150


async def deployment(name: str) -> DeploymentResponse:
    """Return a deployment."""
    async with get_client() as client:
        return await client.read_deployment_by_name(name)


async def runs(name: str) -> set[UUID]:
    """Return the runs of a deployment that no schedule created."""
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[(await deployment(name)).id]))
    async with get_client() as client:
        return {run.id for run in await client.read_flow_runs(flow_run_filter=of_it) if not run.auto_scheduled}


async def until(happened: Callable[[], Awaitable[bool]], act: Callable[[], Awaitable[None]]) -> None:
    """Act, poll for the result, and act again if it does not appear in time, as a person would.

    A busy server on SQLite responds with 503; the dashboard shows that, and does not retry the request itself.
    """
    for _ in range(ATTEMPTS):
        await act()
        for _ in range(LOOKS):
            if await happened():
                return
            await asyncio.sleep(0.2)
    raise AssertionError("The dashboard did not do it.")


async def new_run(name: str, press: Callable[[], Awaitable[None]]) -> UUID:
    """Press something that starts a run, and return that run."""
    before = await runs(name)

    async def started() -> bool:
        return bool(await runs(name) - before)

    await until(started, press)
    return (await runs(name) - before).pop()


async def open_deployment(page: Page, name: str) -> None:
    """Open a deployment's page."""
    await page.goto(f"deployments/deployment/{(await deployment(name)).id}")


async def open_run(page: Page, run_id: UUID) -> None:
    """Open a run's page."""
    await page.goto(f"runs/flow-run/{run_id}")


async def open_form(page: Page, name: str) -> None:
    """Open the form of a custom run."""
    await page.goto(f"deployments/deployment/{(await deployment(name)).id}/run")
    await page.get_by_text("Enforce Parameter Schema").wait_for()


async def fill_in(
    page: Page, rotation: str, *, time_zone: str = "Europe/Berlin", days: int = 30, usd: int = 50
) -> None:
    """Fill in the form of add-rotation; the destination is the Vault secret with the rotation's name."""
    await open_form(page, "add-rotation/add-rotation")
    await field(page, "Connection").get_by_role("tab", name="OpenRouterCredentials").click()
    await pick(page, field(page, "Connection"), CONNECTION)
    await field(page, "Time zone").get_by_role("textbox").fill(time_zone)
    await field(page, "Interval in days").get_by_role("tab", name="int").click()
    await field(page, "Interval in days").get_by_role("spinbutton").fill(str(days))
    await field(page, "Key name").get_by_role("textbox").fill(f"{rotation} service")
    await field(page, "Limit (USD)").get_by_role("tab", name="float").click()
    await field(page, "Limit (USD)").get_by_role("spinbutton").fill(str(usd))
    await field(page, "Destinations").get_by_role("button", name="Add item").click()
    await page.get_by_role("tab", name="VaultSecret").click()
    await pick(page, page.locator("body"), rotation)
    await field(page, "Rotation name").get_by_role("textbox").fill(rotation)


async def submit(page: Page, name: str) -> FlowRun:
    """Submit the form of a deployment, and wait for the end of its run."""
    answers: list[str] = []

    def note(answer: Response) -> None:
        if answer.request.method == "POST":
            answers.append(f"{answer.url}: {answer.status}")

    page.on("response", note)
    try:
        run_id = await new_run(name, page.get_by_role("button", name="Submit").click)
    except AssertionError as error:
        values = await page.locator("input, textarea").evaluate_all("inputs => inputs.map(input => input.value)")
        error.add_note(f"The fields hold {values}. Answers: {answers}")
        error.add_note(f"The page says: {await page.locator('body').inner_text()}")
        raise
    return await ended(run_id)


def field(page: Page, name: str) -> Locator:
    """Return the part of a form that belongs to a parameter."""
    label = page.get_by_text(name, exact=True).or_(page.get_by_text(f"{name} (Optional)", exact=True))
    # Label and menu are in one row; the element around that row contains the input, too.
    return label.locator("xpath=ancestor::div[.//button][2]").first


async def pick(page: Page, within: Locator, block: str) -> None:
    """Select a block."""
    await within.get_by_text("Select a block").click()
    await page.get_by_role("option", name=block, exact=True).click()


async def press_run(page: Page, name: str) -> UUID:
    """Click Run, Quick run, and Run in the dialog that shows the parameters; return the new run."""

    async def press() -> None:
        await open_deployment(page, name)
        await page.get_by_role("button", name="Run", exact=True).click()
        await page.get_by_role("menuitem", name="Quick run").click()
        await page.get_by_role("dialog").get_by_role("button", name="Run", exact=True).click()

    return await new_run(name, press)


async def press_switch(page: Page, name: str, *, switch: str) -> None:
    """Switch a deployment's schedule off."""

    async def press() -> None:
        await open_deployment(page, name)
        await page.get_by_role("switch", name=switch, checked=True).click()

    async def is_off() -> bool:
        return not any(schedule.active for schedule in (await deployment(name)).schedules)

    await until(is_off, press)


async def choose(page: Page, action: str) -> None:
    """Select an action in a run's menu, and confirm it."""
    await page.get_by_role("button", name="Open menu").first.click()
    await page.get_by_role("menuitem", name=action).click()
    dialog: Any = page.get_by_role("alertdialog").or_(page.get_by_role("dialog"))
    # The button that closes the dialog comes first, and is also called Cancel.
    await dialog.get_by_role("button", name=action).last.click()
    await expect(dialog).to_be_hidden()


async def open_artifact(page: Page, key: str) -> None:
    """Open the newest artifact with a key."""
    artifact: Any = await Artifact.aget(key)
    await page.goto(f"artifacts/artifact/{artifact.id}")


async def open_new_block(page: Page, block: type[Block]) -> None:
    """Open the form of a new block."""
    await page.goto(f"blocks/catalog/{block.get_block_type_slug()}/create")
    await page.get_by_label("Name", exact=True).wait_for()


async def save(page: Page, block: str) -> None:
    """Save a new block, given as `<type slug>/<name>`."""
    slug, _, name = block.partition("/")

    async def is_there() -> bool:
        async with get_client() as client:
            return name in {each.name for each in await client.read_block_documents_by_type(slug)}

    await until(is_there, page.get_by_role("button", name="Save", exact=True).click)
