"""A rotation's settings, and what changed in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.responses import DeploymentResponse

from blocks.errors import ConfigurationError
from tasks.model.rotation import parse_rotation
from tasks.model.schedules import SLUG
from tasks.world.deployments import read_timetable


def as_settings(deployment: DeploymentResponse) -> dict[str, Any]:
    """Spell what a person can set of a rotation, for a comparison.

    Args:
        deployment: The rotation's deployment.

    Returns:
        The rotation's fields, its `schedule`, and `auto_rotation`.
    """
    rotation = deployment.parameters.get("rotation")
    try:
        settings = parse_rotation(rotation).model_dump(mode="json")
    except ConfigurationError:
        # Somebody has put something else there; it is compared as it stands.
        settings = dict(rotation) if isinstance(rotation, Mapping) else {"rotation": rotation}
    own = next((each for each in deployment.schedules if each.slug == SLUG), None)
    timetable = read_timetable(own.schedule) if own else None
    return {
        **settings,
        "schedule": str(timetable) if timetable else None,
        "auto_rotation": bool(own and own.active and not deployment.paused),
    }


def change_table(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Show what changed, field by field.

    Args:
        changes: The fields with their former and their new values.

    Returns:
        The lines of a table in markdown.
    """
    if not changes:
        return ["Nothing: every field is as it was."]
    rows = [f"| {name} | {_spelt(before)} | {_spelt(after)} |" for name, (before, after) in changes.items()]
    return ["| Field | Before | Now |", "| --- | --- | --- |", *rows]


def _spelt(value: Any) -> str:
    if value is None or value in ("", []):
        return "none"
    return cell(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def cell(text: str) -> str:
    """Make a text fit into a cell of a markdown table.

    Args:
        text: Any text.

    Returns:
        One line, whose bars do not end the cell.
    """
    return " ".join(text.replace("|", "\\|").split())
