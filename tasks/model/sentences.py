"""Parts of sentences that several modules write."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 3
"""How many of several things a sentence names; it counts the others."""


def first_few(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
