"""Only a person can replace a management key, so a warning comes in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tasks.model.management_keys import AHEAD, PAGE, InUse

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def in_use(days: float, fingerprint: str = "one", expires_in: float | None = None) -> InUse:
    """Return a management key that has been in use for some days."""
    return InUse(
        connection="openrouter",
        fingerprint=fingerprint,
        since=NOW - timedelta(days=days),
        remind_after=timedelta(days=90),
        expires_at=None if expires_in is None else NOW + timedelta(days=expires_in),
    )


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (in_use(0), ""),
        (in_use(75.9), ""),
        (in_use(76), "has been in use for 76 days, of at most 90"),
        (in_use(0, expires_in=14.1), ""),
        (in_use(0, expires_in=14), "expires at 2026-12-15 12:00 UTC"),
        (in_use(100, expires_in=-1), "expires at 2026-11-30 12:00 UTC and has been in use for 100 days"),
    ],
)
def test_a_warning_comes_two_weeks_ahead(key: InUse, says: str) -> None:
    """A warning precedes the maximum age and the expiry; before that there is none."""
    warning = key.warning(NOW)

    assert timedelta(days=14) == AHEAD
    assert says in warning
    assert bool(warning) is bool(says)


def test_a_warning_says_what_to_do() -> None:
    """It says where to create a new key, where to store it, and what to run then."""
    warning = in_use(90).warning(NOW)

    assert PAGE in warning
    assert "openrouter-credentials/openrouter" in warning
    assert "check-connections" in warning
    assert "delete the former management key" in warning


def test_the_same_key_keeps_its_beginning() -> None:
    """A later check of the same key must not restart its age."""
    assert in_use(0).continued(in_use(30)).since == NOW - timedelta(days=30)


def test_another_key_starts_anew() -> None:
    """A different fingerprint, or no earlier check, starts a new age."""
    assert in_use(0).continued(in_use(30, "another")).since == NOW
    assert in_use(0).continued(None).since == NOW
