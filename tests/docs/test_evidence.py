"""The page about the evidence names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "explanation" / "evidence.md"


def test_every_test_that_the_page_names_exists() -> None:
    """Each fault in the table has at least one test, and each test that is named is one that pytest runs."""
    defined = {
        name
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line][1:]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]

    assert len(rows) > 20
    assert all(named)
    assert {name for names in named for name in names} - defined == set()
