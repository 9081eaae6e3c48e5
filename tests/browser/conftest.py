"""The dashboard in a real browser, with a Prefect server and a worker of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright
from prefect.logging.handlers import APILogWorker
from pydantic import SecretStr

from sandbox.openrouter import DEFAULT_MANAGEMENT_KEY
from sandbox.setup import CONNECTION, prepare
from sandbox.stack import CHECKOUT, Stack
from tests.e2e.conftest import world  # noqa: F401 - the stand-ins, around the server of this module

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
IN_TIME = 30_000
"""How long the dashboard may take to show something, in milliseconds."""
IMAGES = CHECKOUT / "docs" / "images"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: apt-get install chromium, or set CHROMIUM"),
]

Picture = Callable[[str], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A Prefect server with the project's deployments, and a worker."""
    with Stack() as stack:
        with stack.as_client():
            asyncio.run(prepare(SecretStr(DEFAULT_MANAGEMENT_KEY)))
        stack.cli("deploy", "--all", "--no-prompt")
        stack.start_worker()
        yield stack
        with stack.as_client():
            # What is left would be sent at exit, again and again, to a server that is gone.
            APILogWorker.drain_all(timeout=5)


@pytest.fixture
def connection() -> str:
    """The connection that a person sees in the pictures; no other test shares this server."""
    return CONNECTION


@pytest.fixture
async def page(stack: Stack) -> AsyncIterator[Page]:
    """A page of the dashboard."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = await browser.new_page(viewport={"width": 1280, "height": 800}, base_url=f"{stack.url}/v2/")
        page.set_default_timeout(IN_TIME)
        yield page
        await browser.close()


@pytest.fixture
def picture(page: Page, request: pytest.FixtureRequest) -> Picture:
    """Takes a picture for the documentation, where `--take-pictures` asks for it."""

    async def take(name: str) -> None:
        if request.config.getoption("--take-pictures"):
            await page.wait_for_timeout(5_000)  # until the drawing of a run has come to rest
            await page.screenshot(path=str(IMAGES / f"{name}.png"))

    return take
