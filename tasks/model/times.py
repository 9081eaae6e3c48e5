"""Times: stored ones, of a zone and in UTC, so that any two of them can be compared; and their display."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A stored time. One without a zone is refused where it is read, not where a later step would compare it."""


def show_time(at: datetime) -> str:
    """Return a time (UTC) for display, to the minute."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
