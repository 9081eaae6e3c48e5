"""When a rotation runs by itself, and what a change of the schedule changes: pure, with the clock as an argument.

The schedule is a recurrence rule (RFC 5545), not Prefect's interval. In prefect 3.8.8 an interval keeps its local time
only if it is counted from its anchor; the scheduler counts from the current time and jumps there in absolute seconds.
Across a clock change 03:30 becomes 04:30, beside the runs that were scheduled before it: two rotations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from blocks.errors import ConfigurationError

SLUG = "auto-rotation"
"""Slug of the schedule of a rotation's deployment; the schedule is active if auto-rotation is on."""
MAX_INTERVAL_DAYS = 3650

TIME_PATTERN = "([01][0-9]|2[0-3]):([0-5][0-9])"
"""A local time; a regular expression of JSON Schema."""

_TIME = re.compile(TIME_PATTERN)
_RULE = re.compile(r"DTSTART:([0-9]{8}T[0-9]{6})\nRRULE:FREQ=DAILY;INTERVAL=([0-9]+)")
_START = "%Y%m%dT%H%M%S"


@dataclass(frozen=True)
class Timetable:
    """Every so many days at a local time.

    Args:
        days: Days between two rotations.
        at: The local time.
        zone: Its time zone.
    """

    days: int
    at: time
    zone: ZoneInfo

    def __str__(self) -> str:
        every = "every day" if self.days == 1 else f"every {self.days} days"
        return f"{every} at {self.at:%H:%M} {self.zone.key}"

    def fields(self) -> dict[str, Any]:
        """Return the arguments of `parse_timetable` that describe it."""
        return {"days": self.days, "at": f"{self.at:%H:%M}", "zone": self.zone.key}

    def on(self, day: date) -> datetime:
        """Return the local time on a day, UTC.

        Where the clocks show it twice, that is the first; where they skip it, it is an hour off.
        """
        return datetime.combine(day, self.at, self.zone).astimezone(UTC)

    def next_rotation(self, now: datetime, last: datetime | None) -> datetime:
        """Return the next rotation, UTC, such that a change of the settings never causes one at once.

        It is one interval after the last rotation, but never in the past; without a last rotation, it is the next
        occurrence of the local time.

        Args:
            now: The current time, UTC.
            last: When the current key became current, UTC; `None` if there is no key yet.
        """
        today = now.astimezone(self.zone).date()
        due = last.astimezone(self.zone).date() + timedelta(days=self.days) if last else today
        day = max(due, today)
        return self.on(day) if self.on(day) > now else self.on(day + timedelta(days=1))

    def rule(self, first: datetime) -> str:
        """Return the recurrence rule (RFC 5545), which keeps the local time across daylight saving.

        Args:
            first: The first rotation, as `next_rotation` returns it.
        """
        start = datetime.combine(first.astimezone(self.zone).date(), self.at)
        return f"DTSTART:{start:{_START}}\nRRULE:FREQ=DAILY;INTERVAL={self.days}"

    def skipped(self, now: datetime) -> date | None:
        """Return the next local date, within a year, on which the clocks skip the local time; `None` for none."""
        today = now.astimezone(self.zone).date()
        days = (today + timedelta(days=ahead) for ahead in range(366))
        return next((day for day in days if self.on(day).astimezone(self.zone).time() != self.at), None)


def parse_timetable(days: Any, at: Any, zone: Any) -> Timetable:
    """Read a timetable from the fields of a form.

    Args:
        days: Days between two rotations.
        at: The local time, such as `03:30`.
        zone: The IANA time zone, such as `Europe/Berlin`.

    Raises:
        ConfigurationError: One sentence for each wrong field, which names it.
    """
    found = _TIME.fullmatch(str(at).strip())
    is_number = isinstance(days, int) and not isinstance(days, bool)
    found_zone = _zone(zone)
    wrong = [
        (found is None, "rotate_at: must be a local time in 24-hour format, such as 03:30"),
        (found_zone is None, "time_zone: must be an IANA time zone, such as Europe/Berlin"),
        (
            not is_number or not 1 <= days <= MAX_INTERVAL_DAYS,
            f"interval_days: must be a whole number of days from 1 to {MAX_INTERVAL_DAYS}",
        ),
    ]
    refusals = [ConfigurationError(f"{sentence}. Nothing was created.") for is_wrong, sentence in wrong if is_wrong]
    if refusals or found is None or found_zone is None:
        raise ConfigurationError.combine(refusals)
    return Timetable(days, time(int(found[1]), int(found[2])), found_zone)


def _zone(name: Any) -> ZoneInfo | None:
    try:
        return ZoneInfo(str(name).strip())
    except (KeyError, ValueError, OSError):  # unknown zone, invalid path, a directory of the database
        return None


def read_rule(rule: str, zone: str) -> Timetable | None:
    """Return the timetable of a recurrence rule; `None` if it is not a local time every so many days."""
    found = _RULE.fullmatch(rule.strip())
    if found is None:
        return None
    start = datetime.strptime(found[1], _START)  # noqa: DTZ007 - a local time; its zone is stored separately
    return Timetable(int(found[2]), start.time(), ZoneInfo(zone))
