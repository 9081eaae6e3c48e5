"""Durations as people write them: `24h`, `7d`, `1d 12h`, or ISO 8601 such as `PT24H`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

_UNITS = {
    "weeks": "w(?:eeks?)?",
    "days": "d(?:ays?)?",
    "hours": "h(?:ours?)?",
    "minutes": "m(?:in(?:utes?)?)?",
    "seconds": "s(?:ec(?:onds?)?)?",
}
# At most six digits: whatever is written, the sum can be computed.
_PLAIN = r"\s*".join(f"(?:({{}}[0-9]{{{{1,6}}}})\\s*{unit})?" for unit in _UNITS.values())
_READ = re.compile(_PLAIN.format(*(f"?P<{name}>" for name in _UNITS)))
_ISO = r"P(?=[0-9T])(?:[0-9]+[YMWD])*(?:T(?:[0-9.]+[HMS])+)?"

PATTERN = rf"^\s*(?:{_ISO}|(?=[0-9]){_PLAIN.format(*['?:'] * len(_UNITS))})\s*$"
"""What a form accepts as a duration before it is submitted; a regular expression of JSON Schema."""
EXPECTED = "must be a duration, such as 24h, 7d or PT24H"


def read_duration(value: Any) -> Any:
    """Return the duration that a text such as `24h` or `1d 12h` means; anything else unchanged."""
    found = _READ.fullmatch(value.strip()) if isinstance(value, str) else None
    parts = {unit: int(number) for unit, number in found.groupdict().items() if number} if found else {}
    return timedelta(**parts) if parts else value
