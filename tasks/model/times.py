"""Times that are stored: of a zone, and in UTC, so that any two of them can be compared."""

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
