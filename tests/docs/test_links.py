"""Every link of the pages outside of the site leads somewhere; those inside are checked by `make docs`."""

from __future__ import annotations

import re

import pytest

from sandbox.stack import CHECKOUT

PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures."""
    return LINK.findall((CHECKOUT / page).read_text())


def anchors(page: str) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = HEADING.findall((CHECKOUT / page).read_text())
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "link"), sorted({(page, link) for page in PAGES for link in links(page) if "://" not in link})
)
def test_each_link_leads_to_what_is_there(page: str, link: str) -> None:
    """A file that a page names exists, and so does the heading."""
    file, _, anchor = link.partition("#")

    assert (CHECKOUT / file).exists()
    assert not anchor or anchor in anchors(file or page)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_an_insecure_address(page: str) -> None:
    """Links to the outside are https."""
    assert not [link for link in links(page) if link.startswith("http:")]
