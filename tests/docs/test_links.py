"""Every link on the pages outside of the site has a target; `make docs` checks those inside."""

from __future__ import annotations

import re

import pytest

from sandbox.stack import CHECKOUT

PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def links(page: str) -> list[str]:
    """Return the targets of a page's links and images."""
    return LINK.findall((CHECKOUT / page).read_text())


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = HEADING.findall((CHECKOUT / page).read_text())
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "link"), sorted({(page, link) for page in PAGES for link in links(page) if "://" not in link})
)
def test_each_link_leads_to_what_is_there(page: str, link: str) -> None:
    """Both the file and the heading in it exist."""
    file, _, anchor = link.partition("#")

    assert (CHECKOUT / file).exists()
    assert not anchor or anchor in anchors(file or page)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_an_insecure_address(page: str) -> None:
    """Links to other sites use https."""
    assert not [link for link in links(page) if link.startswith("http:")]
