"""Durations as people write them (`24h`, `7d`, `1d 12h`, or ISO 8601 such as `PT24H`), and as they read them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

_UNITS = {"weeks": "w", "days": "d", "hours": "h", "minutes": "m(?:in)?", "seconds": "s"}
# At most six digits, so that the sum cannot overflow.
_READ = re.compile(" ?".join(f"(?:(?P<{name}>[0-9]{{1,6}}) ?{unit})?" for name, unit in _UNITS.items()))

PATTERN = "^([0-9]{1,6} ?(w|d|h|min|m|s) ?)+$|^P[0-9A-Z.]+$|:[0-9]{2}"
"""The durations that a form accepts; a regular expression of JSON Schema, short because the dashboard shows it.

The last alternative admits `1:00:00`, which pydantic reads and existing deployments may contain.
"""
EXPECTED = "must be a duration, such as 24h, 7d or PT24H"


def read_duration(value: Any) -> Any:
    """Return the duration in a text such as `24h` or `1d 12h`; any other value unchanged."""
    found = _READ.fullmatch(value.strip()) if isinstance(value, str) else None
    parts = {unit: int(number) for unit, number in found.groupdict().items() if number} if found else {}
    return timedelta(**parts) if parts else value


def show_duration(length: timedelta) -> str:
    """Return a duration for display, such as `1 day 12 hours`, to the second."""
    rest = int(length.total_seconds())
    parts = []
    for unit, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        number, rest = divmod(rest, seconds)
        parts += [f"{number} {unit}{'' if number == 1 else 's'}"] * bool(number)
    return " ".join(parts) or "0 seconds"
