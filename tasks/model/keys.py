"""Facts about keys: marker, label and fingerprint."""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import sha256
from typing import NamedTuple, TypeGuard
from uuid import UUID

from pydantic import SecretStr

INSTALLATION_LENGTH = 7
"""The length of an installation's id, in letters. A longer one would leave less room for the name of a key."""
_INSTALLATION = re.compile(rf"[a-z]{{{INSTALLATION_LENGTH}}}")
_MARKER = re.compile(
    r"\[rotation (?P<rotation>[a-z0-9-]+) "
    rf"(?:(?P<installation>{_INSTALLATION.pattern})/(?P<run>[0-9a-f]{{32}})"
    r"|run (?P<former_run>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))\] ?"
)


class Marker(NamedTuple):
    """Who made a key.

    Args:
        rotation: The rotation's name.
        run_id: The flow run's id.
        installation: The id of the Prefect installation; empty in keys of earlier versions.
    """

    rotation: str
    run_id: UUID
    installation: str = ""

    def __str__(self) -> str:
        if not self.installation:
            return f"[rotation {self.rotation} run {self.run_id}]"
        return f"[rotation {self.rotation} {self.installation}/{self.run_id.hex}]"

    def is_of(self, installations: Collection[str], known_runs: Collection[UUID]) -> bool:
        """Return whether one of these installations made the key; an earlier version's key is identified by its run."""
        return self.installation in installations if self.installation else self.run_id in known_runs


def is_installation(value: object) -> TypeGuard[str]:
    """Return whether a value can be an installation's id; letters only, so that no tool reads it as a number."""
    return isinstance(value, str) and bool(_INSTALLATION.fullmatch(value))


def marker(rotation: str, run_id: UUID, installation: str = "") -> str:
    """Return the part of a key's name that identifies the rotation, the installation and the flow run that made it.

    It precedes the user's part of the name, so that it survives if OpenRouter cuts the name. Earlier versions put it
    last, and named no installation.
    """
    return str(Marker(rotation, run_id, installation))


def read_marker(key_name: str) -> Marker | None:
    """Return who made a key, according to the marker at either end of its name; `None` without a marker."""
    found = _find_marker(key_name)
    if found is None:
        return None
    return Marker(found["rotation"], UUID(found["run"] or found["former_run"]), found["installation"] or "")


def without_marker(key_name: str) -> str:
    """Return the name of a key without its marker."""
    found = _find_marker(key_name)
    return f"{key_name[: found.start()]}{key_name[found.end() :]}".strip() if found else key_name


def _find_marker(key_name: str) -> re.Match[str] | None:
    # The user's part may imitate a marker. A name with the marker in front ends with the date, so this is unambiguous.
    found = list(_MARKER.finditer(key_name))
    at_end = bool(found) and found[-1].end() == len(key_name)
    return (found[-1] if at_end else found[0]) if found else None


CUT = "..."
"""Replaces the middle of a key in its label."""
KEY_PREFIX = "sk-or-"
"""The prefix of every OpenRouter key."""


NOT_YET_ROTATED = "not-yet-rotated"
"""The placeholder for destinations that cannot be empty, such as Prefect's `Secret`, before the first rotation."""


def may_be_replaced(secret: SecretStr | None) -> bool:
    """Return whether a first key may replace a destination's content: if it is empty, a placeholder, or a key."""
    text = secret.get_secret_value().strip() if secret else ""
    return text in ("", NOT_YET_ROTATED) or text.startswith(KEY_PREFIX)


def label_agrees(label: str, secret: SecretStr | None) -> bool | None:
    """Return whether a label can belong to a secret; `None` if the secret is no OpenRouter key.

    Args:
        label: The label as OpenRouter shows it, such as `sk-or-v1-0e6...1c96`.
        secret: The content of a destination.
    """
    text = secret.get_secret_value() if secret else ""
    if not text.startswith(KEY_PREFIX):
        return None
    beginning, _, end = label.partition(CUT)
    return text.startswith(beginning) and text.endswith(end)


FINGERPRINT_LENGTH = 16
"""How many hex digits of the SHA-256 are kept: enough to tell keys apart, too few to reconstruct one."""


def fingerprint(secret: SecretStr | None) -> str | None:
    """Return the first digits of a key's SHA-256, which identify it without revealing it; `None` if there is none."""
    if secret is None:
        return None
    return sha256(secret.get_secret_value().encode()).hexdigest()[:FINGERPRINT_LENGTH]
