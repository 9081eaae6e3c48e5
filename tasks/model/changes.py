"""Compare settings, and merge them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(before: Mapping[str, Any], after: Mapping[str, Any], within: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ, by dotted name, each with its old and its new value; `None` if absent.

    Args:
        before: The settings as they were.
        after: The settings as they are now.
        within: The prefix of the names, with a trailing dot; empty at the top level.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= differences(old, new, f"{within}{name}.")
        elif old != new:
            found[f"{within}{name}"] = old, new
    return found


def merged(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return `kept` updated with `asked`, recursively."""
    both = dict(kept)
    for name, new in asked.items():
        old = both.get(name)
        both[name] = merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return both
