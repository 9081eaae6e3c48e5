"""How times and durations are displayed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasks.model.keys import show_duration


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
