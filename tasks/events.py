"""The events that a rotation tells of: stable names that automations may rely on."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Event(StrEnum):
    """What happened; the value is the event's name at Prefect, `meaning` says it in words."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """Make an event of its name and its meaning."""
        event = str.__new__(cls, name)
        event._value_ = name
        event.meaning = meaning
        return event

    KEY_CREATED = "key-rotation.key.created", "A key was created at OpenRouter and written into the ledger."
    KEY_VERIFIED = "key-rotation.key.verified", "The new key works and has the settings asked for."
    KEY_PUBLISHED = "key-rotation.key.published", "One destination holds the new key; it was read back."
    KEY_REVOKED = "key-rotation.key.revoked", "A superseded key was deleted at OpenRouter."
    KEY_DISABLED = "key-rotation.key.disabled", "A superseded key was disabled; until it is deleted it can be restored."
    KEY_RESTORED = "key-rotation.key.restored", "A superseded key was brought back and is the current one again."
    KEY_REVOCATION_POSTPONED = (
        "key-rotation.key.revocation-postponed",
        "A superseded key may still be used, so its revocation waits.",
    )
    ROTATION_COMPLETED = "key-rotation.rotation.completed", "Every destination holds the new key."
    ROTATION_FAILED = "key-rotation.rotation.failed", "A run failed; its sentence says what, and that Retry is safe."
    ROTATION_REMOVED = "key-rotation.rotation.removed", "A rotation was taken away, and none of its keys is left."
    BUDGET_RESTORED = "key-rotation.budget.restored", "The period of a carried budget ended; the full limit is back."
    SETTINGS_APPLIED = "key-rotation.settings.applied", "The rotation's settings reached the current key."
    ORPHAN_FOUND = "key-rotation.orphan.found", "An audit found a live key that no ledger explains."
    ORPHAN_REMOVED = "key-rotation.orphan.removed", "An audit with repair deleted an orphan."
    AUDIT_FINDING = "key-rotation.audit.finding", "An audit found something else that a person should know."


def resource(rotation: str) -> dict[str, str]:
    """Name the resource that an event is about.

    Args:
        rotation: The rotation's name.

    Returns:
        The resource, by which automations match.
    """
    return {
        "prefect.resource.id": f"key-rotation.rotation.{rotation}",
        "prefect.resource.name": rotation,
        "prefect.resource.role": "key-rotation",
    }
