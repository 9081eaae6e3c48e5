"""Runs are named after what they do."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.names import generate_slug

from tasks.world.naming import MADE_UP, run_name


@pytest.mark.parametrize(
    ("flow", "parameters", "name"),
    [
        ("rotate", {"rotation": {"name": "checkout"}, "emergency": False}, "rotate checkout"),
        ("rotate", {"rotation": {"name": "checkout"}, "emergency": True}, "emergency checkout"),
        ("rotate", {"rotation": {"name": "checkout"}, "plan_only": True}, "rotate checkout, plan only"),
        ("retire", {"rotation": "checkout"}, "retire checkout"),
        ("add-rotation", {"rotation_name": "checkout", "connection": {"$ref": "…"}}, "add-rotation checkout"),
        ("audit", {"connection": "openrouter"}, "audit openrouter"),
        ("audit", {"connection": None}, "audit"),
        ("overview", {}, "overview"),
    ],
)
def test_a_run_is_named_after_what_it_does(flow: str, parameters: dict[str, Any], name: str) -> None:
    """The name shows in a list of runs which one to open."""
    assert run_name(flow, parameters) == name


@pytest.mark.parametrize("rotation", ["sk-or-v1-Secret", "line\nbreak", 7, ["checkout"], {"name": "x" * 300}])
def test_what_is_no_rotation_does_not_become_a_name(rotation: object) -> None:
    """A run is named before its parameters are validated, so a key in the wrong field must not become its name."""
    assert run_name("retire", {"rotation": rotation}) == "retire"


def test_only_a_name_that_prefect_has_made_up_is_replaced() -> None:
    """A name from a person, or from a schedule of ours, is kept."""
    assert all(MADE_UP.fullmatch(generate_slug(2)) for _ in range(300))
    assert all(map(MADE_UP.fullmatch, ["Licensed-Quoll", "Gorgeous-Oyster"]))
    assert not any(map(MADE_UP.fullmatch, ["retire checkout", "rotate checkout, try 2", "first key of checkout", "Q3"]))
