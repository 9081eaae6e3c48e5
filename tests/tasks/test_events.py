"""The events, in code and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.events import Event, resource

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"


def test_the_documented_events_are_those_of_the_code() -> None:
    """The table has each event once, with the same meaning."""
    rows = re.findall(r"^\| `(key-rotation\.[^`]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)

    assert dict(rows) == {event.value: event.meaning for event in Event}
    assert len(rows) == len(Event)


def test_a_rotation_is_the_resource() -> None:
    """Automations match by the rotation's name."""
    assert resource("checkout")["prefect.resource.id"] == "key-rotation.rotation.checkout"
