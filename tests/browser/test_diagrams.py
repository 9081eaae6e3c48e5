"""The diagrams of the documentation, rendered in advance, so that a reader needs neither network nor JavaScript.

To render them, run `npm pack mermaid`, unpack it, set the environment variable `MERMAID` to the path of its
`dist/mermaid.min.js`, and run this file with `--take-pictures`.
"""

from __future__ import annotations

import asyncio
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright

from sandbox.stack import CHECKOUT
from tests.browser.conftest import CHROMIUM, QUIET

GENERATED: dict[str, Any] = runpy.run_path(str(CHECKOUT / "docs" / "hooks" / "generated.py"))
DIAGRAMS = sorted(
    {text for page in (CHECKOUT / "docs").rglob("*.md") for text in GENERATED["DIAGRAM"].findall(page.read_text())}
)
DRAW = """async text => {
  // Labels of SVG alone: what HTML is inside of a picture, not every browser shows.
  mermaid.initialize({startOnLoad: false, htmlLabels: false, flowchart: {htmlLabels: false}});
  return (await mermaid.render("diagram", text)).svg;
}"""


async def draw() -> dict[str, str]:
    """Render every diagram, and return the SVG by its source."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = await browser.new_page()
        await page.add_script_tag(path=os.environ["MERMAID"])
        drawn = {text: await page.evaluate(DRAW, text) for text in DIAGRAMS}
        await browser.close()
    return drawn


def keep(pictures: dict[str, str]) -> None:
    """Replace the images in the documentation."""
    directory: Path = GENERATED["DRAWINGS"]
    directory.mkdir(parents=True, exist_ok=True)
    for former in directory.glob("*.svg"):
        former.unlink()
    for text, picture in pictures.items():
        GENERATED["drawing"](text).write_text(picture + "\n")


def test_every_diagram_has_its_picture(request: pytest.FixtureRequest) -> None:
    """A changed diagram has another file name, and so no image until it is rendered again; no unused image is left."""
    if request.config.getoption("--take-pictures"):
        keep(asyncio.run(draw()))

    assert DIAGRAMS
    drawn = sorted(GENERATED["DRAWINGS"].glob("*.svg"))
    assert drawn == sorted(GENERATED["drawing"](text) for text in DIAGRAMS)
    assert all("foreignObject" not in picture.read_text() for picture in drawn)
