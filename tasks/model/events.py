"""The events that a rotation tells of: stable names that automations may rely on."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

KEY = ("key_label", "key_hash", "connection")
FINDING = (*KEY, "kind", "severity", "sentence")


class Event(StrEnum):
    """What happened; the value is the event's name at Prefect.

    `meaning` says it in words, and `payload` names what it tells beside `rotation`: each of these, and nothing else.
    """

    meaning: str
    payload: tuple[str, ...]

    def __new__(cls, name: str, meaning: str, payload: tuple[str, ...]) -> Self:
        """Make an event of its name, its meaning and the fields of its payload."""
        event = str.__new__(cls, name)
        event._value_ = name
        event.meaning = meaning
        event.payload = payload
        return event

    KEY_CREATED = "key-rotation.key.created", "A key was created at OpenRouter and written into the ledger.", KEY
    KEY_VERIFIED = "key-rotation.key.verified", "The new key works and has the settings asked for.", KEY
    KEY_PUBLISHED = (
        "key-rotation.key.published",
        "One destination holds the new key; it was read back.",
        (*KEY, "destination"),
    )
    KEY_REVOKED = "key-rotation.key.revoked", "A superseded key was deleted at OpenRouter.", KEY
    KEY_DISABLED = (
        "key-rotation.key.disabled",
        "A superseded key was disabled; until it is deleted it can be restored.",
        KEY,
    )
    KEY_RESTORED = (
        "key-rotation.key.restored",
        "A superseded key was brought back and is the current one again.",
        KEY,
    )
    KEY_REVOCATION_POSTPONED = (
        "key-rotation.key.revocation-postponed",
        "A superseded key may still be used, so its revocation waits.",
        (*KEY, "sentence"),
    )
    KEY_WRITTEN_OFF = (
        "key-rotation.key.written-off",
        "A key that nobody can revoke any more was taken out of the ledger; it may still be alive.",
        (*KEY, "reason"),
    )
    ROTATION_COMPLETED = "key-rotation.rotation.completed", "Every destination holds the new key.", KEY
    ROTATION_FAILED = (
        "key-rotation.rotation.failed",
        "A run about a rotation failed; its sentence says what is still safe and what to do.",
        ("step", "sentence"),
    )
    ROTATION_REMOVED = "key-rotation.rotation.removed", "A rotation was taken away, and none of its keys is left.", ()
    BUDGET_RESTORED = (
        "key-rotation.budget.restored",
        "The period of a carried budget ended; the full limit is back.",
        KEY,
    )
    SETTINGS_APPLIED = "key-rotation.settings.applied", "The rotation's settings reached the current key.", KEY
    ORPHAN_FOUND = "key-rotation.orphan.found", "An audit found a live key that no ledger explains.", FINDING
    ORPHAN_REMOVED = "key-rotation.orphan.removed", "An audit with repair deleted an orphan.", KEY
    AUDIT_FINDING = "key-rotation.audit.finding", "An audit found something else that a person should know.", FINDING


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
