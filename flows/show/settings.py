"""A rotation's settings, and the table of their changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from prefect.client.schemas.responses import DeploymentResponse
from pydantic import BaseModel

from blocks.errors import ConfigurationError
from blocks.foreign import harmless
from tasks.model.durations import show_duration
from tasks.model.rotation import KeySettings, Retirement, Rotation, parse_rotation
from tasks.world.deployments import own_schedule, read_timetable, rotates_by_itself

GROUPS: dict[str, type[BaseModel]] = {"": Rotation, "key.": KeySettings, "retirement.": Retirement}
LABELS = {
    **{f"{group}{name}": field.title for group, model in GROUPS.items() for name, field in model.model_fields.items()},
    "schedule": "Schedule",
    "auto_rotation": "Rotate on a schedule",
}
"""The label of each setting in the forms."""
MAX_SHOWN = 300
"""How many characters of a setting are shown, such as a description."""


def as_settings(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return a deployment's settings for a comparison: the rotation's fields, `schedule`, and `auto_rotation`."""
    rotation = deployment.parameters.get("rotation")
    try:
        settings = parse_rotation(rotation).model_dump()
    except ConfigurationError:
        # Somebody has edited the parameter into something invalid; compare it as it is.
        settings = dict(rotation) if isinstance(rotation, Mapping) else {"rotation": rotation}
    own = own_schedule(deployment)
    timetable = read_timetable(own.schedule) if own else None
    return settings_of(settings, str(timetable) if timetable else None, rotates_by_itself(deployment))


def settings_of(rotation: Mapping[str, Any], schedule: str | None, active: bool) -> dict[str, Any]:
    """Return a rotation's fields, its `schedule` in words, and `auto_rotation`, for a comparison."""
    return {**rotation, "schedule": schedule, "auto_rotation": active}


def change_table(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a Markdown table of changed fields, given the former and new value of each."""
    if not changes:
        return ["No changes."]
    rows = [
        f"| {LABELS.get(name) or harmless(name, MAX_SHOWN)} | {_spelt(name, before)} | {_spelt(name, after)} |"
        for name, (before, after) in changes.items()
    ]
    return ["| Field | Before | After |", "| --- | --- | --- |", *rows]


def _spelt(name: str, value: Any) -> str:
    if value is None or value in ("", []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, timedelta):
        return show_duration(value)
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    # The asterisks of a schedule are its own, and it was read by a parser.
    return cell(text) if name == "schedule" else harmless(text, MAX_SHOWN)


def cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
