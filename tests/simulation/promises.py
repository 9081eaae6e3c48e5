"""The promises that the simulation checks."""

from __future__ import annotations


class BrokenPromiseError(AssertionError):
    """A promise of the design was broken."""


def promise(kept: bool, what: str) -> None:
    """Check a promise.

    Args:
        kept: Whether it was kept.
        what: What is wrong if it was not kept.

    Raises:
        BrokenPromiseError: It was not kept.
    """
    if not kept:
        raise BrokenPromiseError(what)
