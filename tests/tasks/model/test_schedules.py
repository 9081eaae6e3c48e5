"""When a rotation runs by itself: once, at the same local time all year, and never at once because of a change."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.schedules import RRuleSchedule as ClientRRuleSchedule
from prefect.server.schemas.schedules import IntervalSchedule, RRuleSchedule

from blocks.errors import ConfigurationError
from tasks.model.changes import differences, merged
from tasks.model.schedules import Timetable, parse_spread, parse_timetable
from tasks.world.deployments import accepts_zone, longest_interval, read_timetable, schedule_of

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kolkata"]
"""Zones with clock changes in spring and autumn on both hemispheres, with a change of half an hour, and without any."""
MIN_RUNS = 3
"""How many runs Prefect's scheduler keeps ahead (`PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS`)."""


def timetable(days: int = 30, at: str = "03:30", zone: str = "Europe/Berlin") -> Timetable:
    """Return a timetable as a person would enter it."""
    return parse_timetable(days, at, zone, accepts_zone)


def on_server(table: Timetable, first: datetime) -> RRuleSchedule:
    """Return the schedule as Prefect's server reads it."""
    schedule = schedule_of(table, first)
    return RRuleSchedule(rrule=schedule.rrule, timezone=schedule.timezone)


async def scheduled(schedule: Any, begin: datetime, end: datetime, looks_every: timedelta) -> list[datetime]:
    """Return all runs that Prefect's scheduler creates; it computes them anew on each loop, from the current time."""
    found: set[datetime] = set()
    now = begin
    while now < end:
        found |= {date.astimezone(UTC) for date in await schedule.get_dates(MIN_RUNS, start=now)}
        now += looks_every
    return sorted(date for date in found if date < end)


@pytest.mark.parametrize("days", [1, 7, 30])
@pytest.mark.parametrize("zone", ZONES)
async def test_a_rotation_keeps_its_local_time_for_a_year(zone: str, days: int) -> None:
    """Through both clock changes, Prefect's own scheduler creates one run per interval, at the local time."""
    table = timetable(days, "03:30", zone)
    first = table.next_rotation(NEW_YEAR, None)
    end = first + timedelta(days=366)

    runs = await scheduled(on_server(table, first), NEW_YEAR, end, timedelta(hours=61))

    local = [run.astimezone(ZoneInfo(zone)) for run in runs]
    assert {f"{run:%H:%M}" for run in local} == {"03:30"}
    assert {(after.date() - before.date()).days for before, after in pairwise(local)} == {days}


async def test_prefects_interval_would_rotate_an_hour_late_and_twice() -> None:
    """Why the schedule is a recurrence rule: an interval counted from now moves by an hour when clocks change."""
    anchor = datetime(2027, 1, 1, 3, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    interval = IntervalSchedule(interval=timedelta(days=1), anchor_date=anchor, timezone="Europe/Berlin")
    spring = datetime(2027, 3, 26, 12, tzinfo=UTC)

    runs = await scheduled(interval, spring, spring + timedelta(days=6), timedelta(hours=6))

    local = [run.astimezone(ZoneInfo("Europe/Berlin")) for run in runs]
    assert {f"{run:%H:%M}" for run in local} == {"03:30", "04:30"}
    assert len({run.date() for run in local}) < len(local)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
async def test_a_time_that_the_clocks_skip_is_an_hour_off_on_that_day_only(zone: str) -> None:
    """A local time inside the gap is reported, and the rotation still runs on that day."""
    table = timetable(1, "02:30", zone)
    gap = table.skipped(NEW_YEAR)
    assert gap is not None
    begin = datetime.combine(gap, time(0), UTC) - timedelta(days=3)

    dates = await on_server(table, NEW_YEAR).get_dates(7, start=begin)

    odd = [date for date in dates if f"{date:%H:%M}" != "02:30"]
    assert [date.date() for date in odd] == [gap]
    assert [(after.date() - before.date()).days for before, after in pairwise(dates)] == [1] * 6


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "UTC"])
def test_a_time_that_no_clock_skips_is_not_told(zone: str) -> None:
    """Where the clocks never change, no local time is skipped."""
    assert timetable(1, "02:30", zone).skipped(NEW_YEAR) is None


async def test_a_schedule_that_ends_bounds_no_interval() -> None:
    """Given a single run that a person has planned beside the monthly rotations, the next but one is a month away."""
    monthly = schedule_of(timetable(30), NEW_YEAR)
    once = ClientRRuleSchedule(rrule="DTSTART:20990101T000000Z\nRRULE:FREQ=DAILY;COUNT=1", timezone="UTC")

    assert await longest_interval([monthly, once]) >= timedelta(days=30)
    assert await longest_interval([once]) == timedelta(0)


async def test_a_time_that_comes_twice_rotates_once() -> None:
    """When the clocks go back, 02:30 occurs twice, but the rotation runs once."""
    table = timetable(1, "02:30")
    autumn = datetime(2027, 10, 28, tzinfo=UTC)

    runs = await scheduled(on_server(table, autumn), autumn, autumn + timedelta(days=6), timedelta(minutes=30))

    assert len(runs) == 6


@pytest.mark.parametrize(
    ("now", "last", "days", "expected"),
    [
        ("2027-01-10T12:00", None, 30, "2027-01-11T02:30"),
        ("2027-01-10T01:00", None, 30, "2027-01-10T02:30"),
        ("2027-01-10T12:00", "2027-01-10T12:00", 30, "2027-02-09T02:30"),
        ("2027-01-13T12:00", "2027-01-10T12:00", 30, "2027-02-09T02:30"),
        ("2027-01-20T12:00", "2027-01-10T12:00", 7, "2027-01-21T02:30"),
        ("2027-03-27T12:00", "2027-03-27T12:00", 1, "2027-03-28T01:30"),
    ],
    ids=[
        "no key: the next time the clock shows it",
        "no key: still today",
        "a key made now: after the interval",
        "longer interval: from the last rotation",
        "shorter interval, overdue: not at once but at the next local time",
        "over the change of the clocks",
    ],
)
def test_a_change_of_the_settings_never_rotates_at_once(now: str, last: str | None, days: int, expected: str) -> None:
    """The next rotation is one interval after the last one, at the local time, and never in the past or now."""
    moments = [datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None for text in (now, last, expected)]
    assert moments[0] is not None

    found = timetable(days).next_rotation(moments[0], moments[1])

    assert found == moments[2]


@pytest.mark.parametrize("days", [7, 30])
async def test_a_week_without_a_worker_leaves_at_most_one_late_run(days: int) -> None:
    """After a week, only the runs scheduled in that week are late: at most one for intervals of a week or more."""
    schedule = on_server(timetable(days), NEW_YEAR)
    begun = [NEW_YEAR + timedelta(hours=11 * step) for step in range(200)]

    late = [
        len(await scheduled(schedule, begin, begin + timedelta(days=7), timedelta(days=1))) for begin in begun[::20]
    ]

    assert max(late) == 1


async def test_a_server_that_was_down_makes_no_runs_for_the_past() -> None:
    """The scheduler counts from now: only the runs that it had created in advance are late."""
    schedule = on_server(timetable(1), NEW_YEAR)
    stopped, back = NEW_YEAR + timedelta(days=10), NEW_YEAR + timedelta(days=17)

    ahead = await schedule.get_dates(MIN_RUNS, start=stopped)
    after = await schedule.get_dates(MIN_RUNS, start=back)

    assert all(date >= back for date in after)
    assert len([date for date in ahead if date < back]) == MIN_RUNS


@pytest.mark.parametrize(
    ("days", "at", "zone", "sentence"),
    [
        (0, "03:30", "UTC", "interval_days: "),
        (True, "03:30", "UTC", "interval_days: "),
        ("30", "03:30", "UTC", "interval_days: "),
        (99_999, "03:30", "UTC", "interval_days: "),
        (30, "25:00", "UTC", "rotate_at: "),
        (30, "3:30", "UTC", "rotate_at: "),
        (30, None, "UTC", "rotate_at: "),
        (30, "03:30", "Berlin", "time_zone: "),
        (30, "03:30", "", "time_zone: "),
        (30, "03:30", "../../etc/passwd", "time_zone: "),
        (30, "03:30", "Europe", "time_zone: "),
        (30, "03:30", None, "time_zone: "),
        # In a host's database, and refused by Prefect.
        *[(30, "03:30", zone, "time_zone: ") for zone in ("localtime", "Factory", "posixrules", "posix/Europe/Berlin")],
    ],
)
def test_a_timetable_that_cannot_be_is_refused_by_its_field(days: Any, at: Any, zone: Any, sentence: str) -> None:
    """The refusal is one sentence that names the field."""
    with pytest.raises(ConfigurationError, match=f"^{sentence}") as refused:
        parse_timetable(days, at, zone, accepts_zone)

    assert "Nothing was created" in str(refused.value)


def test_many_rotations_are_spread_evenly_over_the_window_and_not_beyond() -> None:
    """Of a thousand names, each minute of an hour gets some, and none gets more than a few."""
    starts = [timetable().spread(f"rotation-{number}", timedelta(hours=1)).starts for number in range(1000)]
    per_minute = Counter(starts)

    assert (min(starts), max(starts)) == (time(3, 30), time(4, 29))
    assert len(per_minute) == 60
    assert max(per_minute.values()) <= 35


def test_a_rotation_keeps_its_minute() -> None:
    """The minute depends on the name alone; a release that changed it would rotate every key twice."""
    assert timetable().spread("checkout", timedelta(hours=2)).starts == time(5, 10)
    assert timetable(7, zone="UTC").spread("checkout", timedelta(hours=2)).starts == time(5, 10)


def test_a_spread_replaces_the_one_before_and_none_moves_nothing() -> None:
    """A spread is always computed from the requested time."""
    spread = timetable().spread("checkout", timedelta(hours=2))

    assert spread.spread("checkout", timedelta(hours=2)) == spread
    assert spread.spread("checkout", timedelta(0)) == timetable()


@pytest.mark.parametrize("days", [1, 7])
@pytest.mark.parametrize("at", ["03:30", "23:30"], ids=["same day", "over midnight"])
async def test_a_spread_rotation_rotates_at_its_minute_from_its_first_day_on(at: str, days: int) -> None:
    """Prefect's scheduler creates one run per interval at that minute, even if the window reaches past midnight."""
    table = timetable(days, at).spread("checkout", timedelta(hours=2))
    first = table.next_rotation(NEW_YEAR, None)

    runs = await scheduled(on_server(table, first), NEW_YEAR, first + timedelta(days=120), timedelta(hours=61))

    local = [run.astimezone(table.zone) for run in runs]
    assert local[0] == first
    assert {run.time() for run in local} == {table.starts}
    assert {(after.date() - before.date()).days for before, after in pairwise(local)} == {days}


@pytest.mark.parametrize("value", ["two hours", "13h", "-PT1H", None, {}, float("nan")])
def test_a_spread_that_cannot_be_is_refused_by_its_field(value: Any) -> None:
    """The refusal is one sentence that names the field."""
    with pytest.raises(ConfigurationError, match=r"^spread: .*Nothing was created\.$"):
        parse_spread(value)


def test_a_spread_is_read_as_a_duration() -> None:
    """Both the units that people write and ISO 8601 are accepted."""
    assert parse_spread("2h") == parse_spread("PT2H") == timedelta(hours=2)


@pytest.mark.parametrize("window", [timedelta(0), timedelta(hours=2)])
@pytest.mark.parametrize("zone", ZONES)
def test_a_timetable_is_read_back_from_its_schedule(zone: str, window: timedelta) -> None:
    """The stored schedule yields the requested timetable again."""
    table = timetable(14, "23:05", zone).spread("checkout", window)

    assert read_timetable(schedule_of(table, table.next_rotation(NEW_YEAR, None))) == table


def test_differences_name_each_field_that_differs() -> None:
    """A nested field is given by its dotted name, with its former and its new value."""
    before = {"overlap": "P1D", "key": {"name": "a", "limit_usd": 5}, "same": 1}
    after = {"overlap": "P2D", "key": {"name": "a", "limit_usd": None}, "same": 1, "new": True}

    assert differences(before, after) == {
        "overlap": ("P1D", "P2D"),
        "key.limit_usd": (5, None),
        "new": (None, True),
    }


def test_what_was_not_asked_for_is_kept() -> None:
    """Fields beyond the form keep their values, also inside a group; requested values win, even empty ones."""
    kept = {"key": {"workspace_id": "w", "limit_usd": 5}, "retirement": {"mode": "use"}, "overlap": "P1D"}
    asked = {"key": {"limit_usd": None}, "overlap": "P2D"}

    assert merged(kept, asked) == {
        "key": {"workspace_id": "w", "limit_usd": None},
        "retirement": {"mode": "use"},
        "overlap": "P2D",
    }
