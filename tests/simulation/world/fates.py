"""What may happen to one call that leaves the process."""

from __future__ import annotations

from enum import Enum


class Fate(Enum):
    """What happens to one effect."""

    WORKS = "works"
    FAILS = "fails before it takes effect"
    ANSWER_LOST = "takes effect, its answer is lost"
    LATE = "its answer is lost, and it takes effect later"
    FORBIDDEN = "is refused (403)"
    CONFLICT = "is refused (409)"
    TOO_MANY = "is refused (429)"
    KILLED_BEFORE = "the process is killed before it"
    KILLED_AFTER = "the process is killed after it"
