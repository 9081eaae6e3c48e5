"""Compare settings, and merge them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(before: Mapping[str, Any], after: Mapping[str, Any], within: str = "") -> dict[str, tuple[Any, Any]]:
    """Compare two sets of settings field by field.

    Args:
        before: The settings as they were.
        after: The settings as they are now.
        within: The field that holds them, for the names.

    Returns:
        The fields that differ, by their dotted names, each with its former and its new value; `None` for absent.
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
    """Change settings, and keep those that were not asked for.

    Args:
        kept: The settings as they were.
        asked: The settings that were asked for, nested alike.

    Returns:
        The settings as they are to be.
    """
    both = dict(kept)
    for name, new in asked.items():
        old = both.get(name)
        both[name] = merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return both
