"""The generated parts of the reference are complete."""

from __future__ import annotations

import inspect
import re
import runpy
from typing import Any

import pytest

import blocks
import flows
from sandbox.stack import CHECKOUT, read_settings
from tasks.model.decisions import Situation
from tasks.model.rotation import KeySettings, Retirement, Rotation
from tasks.model.states import TRANSITIONS, KeyState

generated: dict[str, Any] = runpy.run_path(str(CHECKOUT / "docs" / "hooks" / "generated.py"))
put_in = generated["on_page_markdown"]
CELLS = re.compile(r" \| (?=(?:[^`]*`[^`]*`)*[^`]*$)")  # a type can contain a bar, but only between backticks


@pytest.mark.parametrize("model", [Rotation, KeySettings, Retirement, *blocks.BLOCKS], ids=lambda model: model.__name__)
def test_every_field_is_told_with_its_description(model: Any) -> None:
    """The table lists each field of the form in order, with its description and whether it is required."""
    rows = generated["fields"](f"{model.__module__}.{model.__name__}").splitlines()[2:]

    told = [CELLS.split(row.strip("| ")) for row in rows]
    assert [cells[0].strip("`") for cells in told] == list(model.model_fields)
    assert [cells[3] for cells in told] == [field.description for field in model.model_fields.values()]
    assert [cells[2] == "required" for cells in told] == [field.is_required() for field in model.model_fields.values()]


def test_every_block_has_a_place_in_the_reference() -> None:
    """The page of blocks has each exported block with its slug."""
    page = (CHECKOUT / "docs" / "reference" / "blocks.md").read_text()

    missing = [
        block.__name__
        for block in blocks.BLOCKS
        if f"::: {block.__module__}.{block.__name__}" not in page or f"`{block.get_block_type_slug()}`" not in page
    ]
    assert missing == []


def test_every_flow_is_in_the_reference() -> None:
    """Each exported flow is listed by name, with a description of every parameter."""
    shown = put_in("{{ flows }}")

    exported = [each for name in flows.__all__ if hasattr(each := getattr(flows, name), "to_deployment")]
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", shown, re.MULTILINE | re.DOTALL))
    told = {
        name: re.findall(r"^\| `(\w+)` \| .* \| \S[^|]*\w[^|]* \|$", part, re.MULTILINE) for name, part in parts.items()
    }
    assert told == {each.name: list(inspect.signature(each.fn).parameters) for each in exported}


def test_defaults_and_types_are_told_as_a_person_writes_them() -> None:
    """Readers need values that they can enter, not names or calls from the code."""
    told = put_in(
        "{{ flows }}\n{{ fields tasks.model.rotation.Rotation }}\n{{ fields tasks.model.rotation.Retirement }}"
    )

    assert "| `older_than_days` | `int` | `90` |" in told
    assert "| `overlap` | `duration` | `P1D` |" in told
    assert not re.search(r"timedelta|Decimal|Literal|Annotated|DEFAULT_", told)


def test_every_state_and_finding_is_on_the_built_page() -> None:
    """The page has every state, transition and finding, so an empty template cannot go unnoticed."""
    page = put_in((CHECKOUT / "docs" / "reference" / "states.md").read_text())

    assert [state for state in KeyState if f"\n| `{state}` | " not in page] == []
    assert [why for why in TRANSITIONS.values() if why not in page] == []
    assert [finding for finding in Situation if f"\n| {finding.value} |" not in page] == []


@pytest.mark.parametrize(
    ("file", "reason"),
    [("prefect.env", "On SQLite: without these three"), ("deploy/fleet.env", "Events pass through Redis")],
)
def test_every_setting_is_told_with_its_reason(file: str, reason: str) -> None:
    """The table has each setting of the file, its value, and the comment above it."""
    told = put_in(f"{{{{ settings {file} }}}}")

    rows = [row for row in told.splitlines() if row.startswith("| `")]
    assert [tuple(cell.strip("`") for cell in CELLS.split(row.strip("| "))[:2]) for row in rows] == list(
        read_settings(CHECKOUT / file).items()
    )
    assert reason in told


def test_every_command_is_told() -> None:
    """The table is generated from the Makefile, and must have at least these commands."""
    told = put_in("{{ commands }}")

    assert {f"`make {name}`" for name in ("demo", "up", "test", "docs")} <= {
        row[2:].split(" | ")[0] for row in told.splitlines()
    }


def test_an_unknown_part_ends_the_build() -> None:
    """A page that requests an unknown part must fail the build, instead of staying empty there."""
    with pytest.raises(KeyError):
        put_in("{{ nonsense }}")
