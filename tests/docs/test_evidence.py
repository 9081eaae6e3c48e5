"""The table of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
FAULTS = (TESTS / "README.md").read_text().split("\n## Faults\n")[1]


def test_every_fault_has_a_test_and_every_test_that_is_named_exists() -> None:
    """Each fault in the table has at least one test, and pytest collects each test that is named."""
    defined = {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }
    rows = [line for line in FAULTS.splitlines() if line.startswith("| ") and "---" not in line][1:]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]

    assert len(rows) > 20
    assert all(named)
    assert {name for names in named for name in names} - defined == set()
