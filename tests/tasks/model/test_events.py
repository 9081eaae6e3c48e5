"""The events in the code and in the documentation."""

from __future__ import annotations

from pathlib import Path

from tasks.model.events import Event, resource

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "events.md"


def test_the_documented_events_are_those_of_the_code() -> None:
    """The documentation lists each event once, with its meaning and payload, in the code's order."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `key-rotation.")]

    assert rows == [
        f"| `{event.value}` | {event.meaning} | {', '.join(f'`{field}`' for field in event.payload)} |"
        for event in Event
    ]


def test_a_rotation_is_the_resource() -> None:
    """Automations match events by the name of the rotation."""
    assert resource("checkout")["prefect.resource.id"] == "key-rotation.rotation.checkout"
