"""What the simulation watches over."""

from __future__ import annotations


class BrokenPromiseError(AssertionError):
    """A promise of the design was not kept."""


def promise(kept: bool, what: str) -> None:
    """Make sure of a promise.

    Args:
        kept: Whether it was kept.
        what: What happened if it was not.

    Raises:
        BrokenPromiseError: It was not kept.
    """
    if not kept:
        raise BrokenPromiseError(what)
