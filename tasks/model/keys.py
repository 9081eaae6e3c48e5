"""What everybody asks about a key: its marker, its label, its fingerprint, and how moments are spelled."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

from pydantic import SecretStr

from blocks.openrouter.keys import LimitReset

_MARKER = re.compile(r"\[rotation ([a-z0-9-]+) run ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\] ?")


def marker(rotation: str, run_id: UUID) -> str:
    """Make the part of a key's name that says which rotation and which flow run made it.

    Args:
        rotation: The rotation's name.
        run_id: The flow run's id, by which the dashboard finds the run.

    Returns:
        The marker, which stands at the beginning of the key's name: if OpenRouter cut the name, the user's part of it
        would be lost and the marker would not. Earlier versions put it at the end.
    """
    return f"[rotation {rotation} run {run_id}]"


def read_marker(key_name: str) -> tuple[str, UUID] | None:
    """Read the marker from the name of a key at OpenRouter.

    Args:
        key_name: The key's name.

    Returns:
        The rotation's name and the flow run's id, wherever in the name they stand; `None` for a key that no rotation
        made.
    """
    found = _find_marker(key_name)
    return (found[1], UUID(found[2])) if found else None


def without_marker(key_name: str) -> str:
    """Take the marker off the name of a key.

    Args:
        key_name: The key's name at OpenRouter.

    Returns:
        The rest of the name.
    """
    found = _find_marker(key_name)
    return f"{key_name[: found.start()]}{key_name[found.end() :]}".strip() if found else key_name


def _find_marker(key_name: str) -> re.Match[str] | None:
    # A user's own part may imitate a marker. A key with its marker at the beginning ends with the date.
    found = list(_MARKER.finditer(key_name))
    at_end = bool(found) and found[-1].end() == len(key_name)
    return (found[-1] if at_end else found[0]) if found else None


CUT = "..."
"""What stands in a label for the middle of the key."""
KEY_PREFIX = "sk-or-"
"""How every key of OpenRouter begins."""


NOT_YET_ROTATED = "not-yet-rotated"
"""What a destination that cannot be empty, such as Prefect's `Secret`, holds before its first rotation."""


def may_be_replaced(secret: SecretStr | None) -> bool:
    """Say whether the first key of a rotation may take the place of what a destination holds.

    Args:
        secret: What a destination holds.

    Returns:
        Whether it is nothing, a placeholder, or some key of OpenRouter.
    """
    text = secret.get_secret_value().strip() if secret else ""
    return text in ("", NOT_YET_ROTATED) or text.startswith(KEY_PREFIX)


def label_agrees(label: str, secret: SecretStr | None) -> bool | None:
    """Say whether a key's label can be that of a secret.

    Args:
        label: The label as OpenRouter shows it, such as `sk-or-v1-0e6...1c96`.
        secret: What a destination holds.

    Returns:
        Whether its beginning and end agree; `None` where the destination holds no key of OpenRouter.
    """
    text = secret.get_secret_value() if secret else ""
    if not text.startswith(KEY_PREFIX):
        return None
    beginning, _, end = label.partition(CUT)
    return text.startswith(beginning) and text.endswith(end)


FINGERPRINT_LENGTH = 16
"""How many hex digits of the SHA-256 are kept: enough to tell keys apart, no help in finding one."""


def fingerprint(secret: SecretStr | None) -> str | None:
    """Tell a key by a short digest instead of by the key itself.

    Args:
        secret: The key's plaintext, or `None` where there is none.

    Returns:
        The first digits of its SHA-256, or `None`.
    """
    if secret is None:
        return None
    return sha256(secret.get_secret_value().encode()).hexdigest()[:FINGERPRINT_LENGTH]


def show_time(at: datetime) -> str:
    """Spell a moment for people.

    Args:
        at: The moment, UTC.

    Returns:
        Date and time to the minute, with the zone.
    """
    return f"{at:%Y-%m-%d %H:%M} UTC"


def period_end(reset: LimitReset | None, now: datetime) -> datetime | None:
    """Say when a limit is reset next.

    Args:
        reset: How often OpenRouter resets it; `None` for never.
        now: The current moment, UTC.

    Returns:
        The next midnight, Monday's midnight or first of a month, UTC, as OpenRouter's API reference says for
        `limit_reset`; `None` for never.
    """
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match reset:
        case "daily":
            return midnight + timedelta(days=1)
        case "weekly":
            return midnight + timedelta(days=7 - midnight.weekday())
        case "monthly":
            return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        case _:
            return None
