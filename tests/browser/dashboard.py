"""What a person does in Prefect's dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from playwright.async_api import Locator, Page, expect
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.responses import DeploymentResponse

ATTEMPTS, LOOKS = 3, 50


async def deployment(name: str) -> DeploymentResponse:
    """Read a deployment."""
    async with get_client() as client:
        return await client.read_deployment_by_name(name)


async def runs(name: str) -> set[UUID]:
    """The runs of a deployment that no schedule has made."""
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[(await deployment(name)).id]))
    async with get_client() as client:
        return {run.id for run in await client.read_flow_runs(flow_run_filter=of_it) if not run.auto_scheduled}


async def until(happened: Callable[[], Awaitable[bool]], act: Callable[[], Awaitable[None]]) -> None:
    """Act as a person does: look whether it has happened, and do it again if the dashboard says that it failed.

    A server on SQLite answers 503 while it is busy; the dashboard shows that, and does not repeat the call by itself.
    """
    for _ in range(ATTEMPTS):
        await act()
        for _ in range(LOOKS):
            if await happened():
                return
            await asyncio.sleep(0.2)
    raise AssertionError("The dashboard did not do it.")


async def new_run(name: str, press: Callable[[], Awaitable[None]]) -> UUID:
    """Press something that starts a run, and find that run."""
    before = await runs(name)

    async def started() -> bool:
        return bool(await runs(name) - before)

    await until(started, press)
    return (await runs(name) - before).pop()


async def open_deployment(page: Page, name: str) -> None:
    """Go to a deployment's page."""
    await page.goto(f"deployments/deployment/{(await deployment(name)).id}")


async def open_run(page: Page, run_id: UUID) -> None:
    """Go to a run's page."""
    await page.goto(f"runs/flow-run/{run_id}")


async def open_form(page: Page, name: str) -> None:
    """Open the form of a custom run."""
    await page.goto(f"deployments/deployment/{(await deployment(name)).id}/run")
    await page.get_by_text("Select a block").first.wait_for()


def field(page: Page, name: str) -> Locator:
    """The part of a form that belongs to a parameter."""
    label = page.get_by_text(name, exact=True).or_(page.get_by_text(f"{name} (Optional)", exact=True))
    # The label and the menu share a row; the element around that row holds the input, too.
    return label.locator("xpath=ancestor::div[.//button][2]").first


async def pick(page: Page, within: Locator, block: str) -> None:
    """Choose a block."""
    await within.get_by_text("Select a block").click()
    await page.get_by_role("option", name=block, exact=True).click()


async def press_run(page: Page, name: str) -> UUID:
    """Press Run, and Run again in the dialog that shows the parameters."""

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
    """Choose an action from a run's menu, and confirm it."""
    await page.get_by_role("button", name="Open menu").first.click()
    await page.get_by_role("menuitem", name=action).click()
    dialog: Any = page.get_by_role("alertdialog").or_(page.get_by_role("dialog"))
    # The button that dismisses the dialog comes first, and is called Cancel too.
    await dialog.get_by_role("button", name=action).last.click()
    await expect(dialog).to_be_hidden()
