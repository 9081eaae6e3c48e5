"""How moments are spelled for people."""

from __future__ import annotations

from datetime import datetime


def moment(at: datetime) -> str:
    """Spell a moment for people.

    Args:
        at: The moment, UTC.

    Returns:
        Date and time to the minute, with the zone.
    """
    return f"{at:%Y-%m-%d %H:%M} UTC"
