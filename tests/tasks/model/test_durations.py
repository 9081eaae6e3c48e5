"""Durations as people write them, and as they are shown."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tasks.model.durations import PATTERN, read_duration, show_duration
from tasks.model.rotation import MAX_OVERLAP, Period

PERIOD: TypeAdapter[timedelta] = TypeAdapter(Period)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("1d 12h", timedelta(days=1, hours=12)),
        ("90 min", timedelta(minutes=90)),
        ("2w", timedelta(weeks=2)),
        ("1h30m15s", timedelta(hours=1, minutes=30, seconds=15)),
        ("0h", timedelta(0)),
        ("PT24H", timedelta(hours=24)),
        ("P7D", timedelta(days=7)),
        ("2 days, 1:00:00", timedelta(days=2, hours=1)),
    ],
)
def test_a_duration_is_read_as_people_write_it(written: str, meant: timedelta) -> None:
    """Durations are given in units or as ISO 8601; the form accepts the same ones as the code."""
    assert PERIOD.validate_python(written) == meant
    assert re.search(PATTERN, written)


@pytest.mark.parametrize("written", ["", "h", "24", "48 bananas", "7x", "P", "h24", "-1d"])
def test_what_is_no_duration_is_refused_before_the_form_is_submitted(written: str) -> None:
    """The form's schema refuses it, and the code leaves it unparsed for the validation."""
    assert not re.search(PATTERN, written)
    assert read_duration(written) == written


@given(st.timedeltas(timedelta(0), MAX_OVERLAP).map(lambda length: length - length % timedelta(seconds=1)))
def test_what_a_deployment_stores_is_accepted_by_its_form(length: timedelta) -> None:
    """A form opens with the stored value, and must not reject it."""
    stored = PERIOD.dump_python(length, mode="json")

    assert re.search(PATTERN, stored)
    assert PERIOD.validate_python(stored) == length


@pytest.mark.parametrize(
    ("length", "shown"),
    [
        (timedelta(0), "0 seconds"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=7, hours=12), "7 days 12 hours"),
        (timedelta(hours=1, minutes=30), "1 hour 30 minutes"),
        (timedelta(seconds=1), "1 second"),
    ],
)
def test_a_duration_is_shown_in_words(length: timedelta, shown: str) -> None:
    """Zero units are left out, and there is no `1 day, 0:00:00`."""
    assert show_duration(length) == shown
