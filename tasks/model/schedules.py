"""When a rotation runs on its schedule, and what a change of the schedule changes; pure, with the time as an argument.

The schedule is a recurrence rule (RFC 5545), not Prefect's interval. In Prefect 3.8.8 an interval keeps its local time
only if it is counted from its anchor; but the scheduler counts from the current time, in absolute seconds. Across a
clock change, 03:30 becomes 04:30, in addition to the runs scheduled before it: two rotations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter, ValidationError

from blocks.errors import ConfigurationError
from tasks.model.durations import read_duration

SLUG = "auto-rotation"
"""Slug of the schedule on which a deployment rotates; `auto_rotation` activates it."""
MAX_INTERVAL_DAYS = 3650
MAX_SPREAD = timedelta(hours=12)

TIME_PATTERN = "([01][0-9]|2[0-3]):([0-5][0-9])"
"""A local time; a regular expression of JSON Schema."""

_TIME = re.compile(TIME_PATTERN)
_RULE = re.compile(
    r"DTSTART:([0-9]{8}T[0-9]{6})\nRRULE:FREQ=DAILY;INTERVAL=([0-9]+)"
    r"(?:;BYHOUR=([01]?[0-9]|2[0-3]);BYMINUTE=([0-5]?[0-9]))?"
)
_START = "%Y%m%dT%H%M%S"


@dataclass(frozen=True)
class Timetable:
    """A rotation every so many days at a local time.

    Args:
        days: Days between two rotations.
        at: The local time.
        zone: Its time zone.
        later: The delay after that time, less than a day.
    """

    days: int
    at: time
    zone: ZoneInfo
    later: timedelta = timedelta(0)

    def __str__(self) -> str:
        every = "every day" if self.days == 1 else f"every {self.days} days"
        spread = f", spread from {self.at:%H:%M}" if self.later else ""
        return f"{every} at {self.starts:%H:%M} {self.zone.key}{spread}"

    @property
    def starts(self) -> time:
        """The local time of the rotation, its delay included."""
        return (datetime.combine(date.min, self.at) + self.later).time()

    def spread(self, name: str, window: timedelta) -> Timetable:
        """Return this timetable with the rotation's own minute in a window after its local time.

        Args:
            name: The rotation's name; the minute is a hash of it, so that it never changes.
            window: The length of the window; below two minutes there is only one choice.
        """
        minutes = window // timedelta(minutes=1)
        number = int.from_bytes(sha256(name.encode()).digest())
        return replace(self, later=timedelta(minutes=number % minutes if minutes else 0))

    def fields(self) -> dict[str, Any]:
        """Return the arguments of `parse_timetable` that describe it without its delay."""
        return {"days": self.days, "at": f"{self.at:%H:%M}", "zone": self.zone.key}

    def on(self, day: date) -> datetime:
        """Return the time of the rotation on a local date, UTC.

        If the clocks repeat that time, it is the first one; if they skip it, the rotation is an hour off.
        """
        return datetime.combine(day, self.starts, self.zone).astimezone(UTC)

    def next_rotation(self, now: datetime, last: datetime | None) -> datetime:
        """Return the time of the next rotation, UTC; a change of the settings never makes one due immediately.

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
        day = first.astimezone(self.zone).date()
        # If the delay passes midnight, count from one interval earlier; the rule then starts before the first rotation.
        start = datetime.combine(day - timedelta(days=self.days) if self.starts < self.at else day, self.at)
        minute = f";BYHOUR={self.starts.hour};BYMINUTE={self.starts.minute}" if self.later else ""
        return f"DTSTART:{start:{_START}}\nRRULE:FREQ=DAILY;INTERVAL={self.days}{minute}"

    def skipped(self, now: datetime) -> date | None:
        """Return the next local date, within a year, on which the clocks skip that time; `None` if there is none."""
        today = now.astimezone(self.zone).date()
        days = (today + timedelta(days=ahead) for ahead in range(366))
        return next((day for day in days if self.on(day).astimezone(self.zone).time() != self.starts), None)


def parse_timetable(days: Any, at: Any, zone: Any, accepts: Callable[[str], bool]) -> Timetable:
    """Read a timetable from the fields of a form.

    Args:
        days: Days between two rotations.
        at: The local time, such as `03:30`.
        zone: The IANA time zone, such as `Europe/Berlin`.
        accepts: Whether the scheduler knows a time zone: a host's database holds more, such as `localtime`.

    Raises:
        ConfigurationError: At least one field is invalid; one sentence names each.
    """
    found = _TIME.fullmatch(str(at).strip())
    is_number = isinstance(days, int) and not isinstance(days, bool)
    found_zone = _zone(zone, accepts)
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


def parse_spread(value: Any) -> timedelta:
    """Parse the window over which rotations with the same local time are spread, such as `2h`.

    Raises:
        ConfigurationError: The value is invalid; the message names the field.
    """
    try:
        window = TypeAdapter(timedelta).validate_python(read_duration(value))
    except ValidationError:
        window = timedelta(-1)
    if not timedelta(0) <= window <= MAX_SPREAD:
        raise ConfigurationError("spread: must be a duration of at most 12h, such as 2h. Nothing was created.")
    return window


def _zone(name: Any, accepts: Callable[[str], bool]) -> ZoneInfo | None:
    try:
        zone = ZoneInfo(str(name).strip())
    except (KeyError, ValueError, OSError):  # unknown zone, invalid path, a directory of the database
        return None
    return zone if accepts(zone.key) else None


def read_rule(rule: str, zone: str) -> Timetable | None:
    """Return the timetable of a recurrence rule; `None` if it is not of this module's form."""
    found = _RULE.fullmatch(rule.strip())
    if found is None:
        return None
    start = datetime.strptime(found[1], _START)  # noqa: DTZ007 - a local time; its zone is stored separately
    starts = start.replace(hour=int(found[3]), minute=int(found[4])) if found[3] else start
    return Timetable(int(found[2]), start.time(), ZoneInfo(zone), (starts - start) % timedelta(days=1))
