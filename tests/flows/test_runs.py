"""How a run begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows.runs import seconds_early

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scheduled", "wait"),
    [
        (NOW + timedelta(seconds=9.5), 9.5),
        (NOW, 0),
        (NOW - timedelta(days=7), 0),
        (NOW + timedelta(days=1), 0),
        (None, 0),
    ],
    ids=["fetched early", "on time", "after a week of downtime", "clocks that disagree", "not scheduled"],
)
def test_a_run_that_a_worker_starts_early_waits_for_its_time(scheduled: datetime | None, wait: float) -> None:
    """A run fetched ahead of its time waits for it; any other starts at once."""
    assert seconds_early(scheduled, NOW) == wait
