"""Makes the pictures of the documentation from a running dashboard: `python -m sandbox.screenshots`.

Needs Chromium, whose path may be given in CHROMIUM.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Any

from playwright.async_api import async_playwright
from prefect import get_client
from prefect.artifacts import Artifact
from pydantic import SecretStr

from sandbox.demo import wait_for
from sandbox.openrouter import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, create_app
from sandbox.server import running
from sandbox.setup import prepare
from sandbox.stack import CHECKOUT, Stack

IMAGES = CHECKOUT / "docs" / "images"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


async def rotate_twice() -> Any:
    """Run the example rotation twice, so that there is something to see.

    Returns:
        The second flow run's id.
    """
    async with get_client() as client:
        deployment = await client.read_deployment_by_name("rotate/example")
        for _ in range(2):
            run = await client.create_flow_run_from_deployment(deployment.id)
            await wait_for(client, run.id)
    await asyncio.sleep(3)  # the task-run recorder writes up to a second later
    return run.id


async def take(stack: Stack, run_id: Any) -> None:
    """Take the pictures."""
    artifact: Any = await Artifact.aget("rotation-example")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        for name, path in {
            "flow-run": f"/runs/flow-run/{run_id}",
            "rotation-artifact": f"/artifacts/artifact/{artifact.id if artifact else ''}",
        }.items():
            await page.goto(f"{stack.url}{path}", wait_until="load")
            await page.get_by_text("sk-or-v1-").first.wait_for(timeout=30_000)
            await page.wait_for_timeout(2_000)
            await page.screenshot(path=str(IMAGES / f"{name}.png"))
        await browser.close()


async def main(stack: Stack, base_url: str) -> None:
    """Prepare, rotate, take the pictures."""
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), base_url)
    stack.cli("deploy", "--all", "--no-prompt")
    stack.start_worker()
    await take(stack, await rotate_twice())


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with running(create_app(OpenRouterSandbox())) as url, Stack() as stack, stack.as_client():
        asyncio.run(main(stack, f"{url}/api/v1"))
