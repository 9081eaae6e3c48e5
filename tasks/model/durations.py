"""Durations as people write them: `24h`, `7d`, `1d 12h`, or ISO 8601 such as `PT24H`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

_UNITS = {"weeks": "w", "days": "d", "hours": "h", "minutes": "m(?:in)?", "seconds": "s"}
# At most six digits: whatever is written, the sum can be computed.
_READ = re.compile(" ?".join(f"(?:(?P<{name}>[0-9]{{1,6}}) ?{unit})?" for name, unit in _UNITS.items()))

PATTERN = "^([0-9]{1,6} ?(w|d|h|min|m|s) ?)+$|^P[0-9A-Z.]+$|:[0-9]{2}"
"""What a form accepts as a duration; a regular expression of JSON Schema, short because the dashboard shows it.

Its end lets `1:00:00` pass, which parameters of deployments may still hold; pydantic reads it.
"""
EXPECTED = "must be a duration, such as 24h, 7d or PT24H"


def read_duration(value: Any) -> Any:
    """Return the duration that a text such as `24h` or `1d 12h` means; anything else unchanged."""
    found = _READ.fullmatch(value.strip()) if isinstance(value, str) else None
    parts = {unit: int(number) for unit, number in found.groupdict().items() if number} if found else {}
    return timedelta(**parts) if parts else value
