"""The states of a key in the code and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.model.states import TRANSITIONS, KeyState

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "key-life.md"


def test_the_drawing_is_the_code() -> None:
    """The documentation's diagram has exactly the code's states and transitions, with the same names."""
    diagram = PAGE.read_text().split("```mermaid\n", 1)[1].split("```", 1)[0]
    drawn = {
        (None if before == "[*]" else KeyState(before), KeyState(after)): why
        for before, after, why in re.findall(r"^\s+(\S+) --> (\S+): (.+)$", diagram, re.MULTILINE)
    }

    assert drawn == TRANSITIONS


def test_every_state_is_reached_and_only_the_last_is_an_end() -> None:
    """Every state can occur, and a key can leave all of them but the last."""
    reached, left = {after for _, after in TRANSITIONS}, {before for before, _ in TRANSITIONS}

    assert reached == set(KeyState)
    assert set(KeyState) - left == {KeyState.FORGOTTEN}
