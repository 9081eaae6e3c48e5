"""The dashboard in a real browser, with its own Prefect server and worker."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import FloatRect, Page, Route, ViewportSize, async_playwright
from prefect.logging.handlers import APILogWorker
from pydantic import SecretStr

from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.setup import CONNECTION, prepare
from sandbox.stack import CHECKOUT, Stack
from tests.e2e.conftest import services  # noqa: F401 - the stand-ins, around the server of this package

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SCREEN: ViewportSize = {"width": 1280, "height": 1000}
MENU, WIDTH = 256, 760
"""The width of the dashboard's menu, which screenshots omit, and of the part of a page that they show."""
IN_TIME = 120_000
"""The maximum time for the dashboard to show something, in milliseconds."""
IMAGES = CHECKOUT / "docs" / "images"
LOGO = """<svg xmlns="http://www.w3.org/2000/svg" width="80" height="80"><rect width="80" height="80" fill="{colour}"/>
<text x="40" y="56" font-family="sans-serif" font-size="44" font-weight="bold" fill="#fff" text-anchor="middle">{letter}
</text></svg>"""
COLOURS = ["#15181e", "#4b5bd6", "#b8860b", "#2f6f5e"]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        not (CHROMIUM or os.environ.get("REQUIRE_BROWSER")),
        reason="Chromium is not installed: apt-get install chromium, or set CHROMIUM",
    ),
]

Picture = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def stack(migrated: Callable[[Stack], Stack]) -> Iterator[Stack]:
    """A Prefect server with the project's deployments, and a worker."""
    with migrated(Stack()) as stack:
        with stack.as_client():
            asyncio.run(prepare(SecretStr(DEFAULT_MANAGEMENT_KEY)))
        stack.cli("deploy", "--all", "--no-prompt")
        stack.start_worker()
        yield stack
        with stack.as_client():
            # Otherwise it would be sent at exit, with many retries, to a server that has stopped.
            APILogWorker.drain_all(timeout=5)


@pytest.fixture
def connection() -> str:
    """The connection in the screenshots; no other test shares this server."""
    return CONNECTION


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser's profile, shared by all tests: its cache saves a second of compiling the dashboard's code."""
    return tmp_path_factory.mktemp("chromium")


@pytest.fixture
async def page(stack: Stack, profile: Path, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A page of the dashboard, whose only network access is the Prefect server."""
    assert CHROMIUM, "REQUIRE_BROWSER is set, and there is no Chromium: apt-get install chromium, or set CHROMIUM."
    scale = 1.5 if request.config.getoption("--take-pictures") else 1
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=QUIET,
            viewport=SCREEN,
            device_scale_factor=scale,
            base_url=f"{stack.url}/v2/",
        )
        page = browser.pages[0]
        page.set_default_timeout(IN_TIME)
        await page.route(lambda url: not url.startswith(stack.url), draw_logo)
        yield page
        await browser.close()


async def draw_logo(route: Route) -> None:
    """Abort external requests, except that an image is replaced by a tile with the first letter of its name."""
    if route.request.resource_type != "image":
        await route.abort()
        return
    name = route.request.url.rpartition("/")[2].upper()
    logo = LOGO.format(letter=name[:1], colour=COLOURS[len(name) % len(COLOURS)])
    await route.fulfill(content_type="image/svg+xml", body=logo)


@pytest.fixture
def picture(page: Page, request: pytest.FixtureRequest) -> Picture:
    """Take a screenshot for the documentation if `--take-pictures` asks for it."""

    async def take(name: str, height: int = 900) -> None:
        if request.config.getoption("--take-pictures"):
            await page.set_viewport_size({"width": MENU + WIDTH, "height": height})
            await page.wait_for_timeout(5_000)  # until the animation of the run graph has stopped
            shown: FloatRect = {"x": MENU, "y": 0, "width": WIDTH, "height": height}
            await page.screenshot(path=str(IMAGES / f"{name}.png"), clip=shown)
            await page.set_viewport_size(SCREEN)

    return take
