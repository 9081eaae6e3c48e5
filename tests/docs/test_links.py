"""Every link of the pages outside of the site leads somewhere; those inside are checked by `make docs`."""

from __future__ import annotations

import re

import pytest

from sandbox.stack import CHECKOUT

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures."""
    return LINK.findall((CHECKOUT / page).read_text())


def anchors(page: str) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = HEADING.findall((CHECKOUT / page).read_text())
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("link", sorted({link for link in links("README.md") if "://" not in link}))
def test_the_readme_links_to_what_is_there(link: str) -> None:
    """A file that the README names exists, and so does the heading."""
    file, _, anchor = link.partition("#")

    assert (CHECKOUT / file).exists()
    assert not anchor or anchor in anchors(file or "README.md")


def test_the_readme_names_no_insecure_address() -> None:
    """Links to the outside are https."""
    assert not [link for link in links("README.md") if link.startswith("http:")]
