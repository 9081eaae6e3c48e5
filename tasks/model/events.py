"""The events that a rotation emits: stable names that automations may rely on."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

KEY = ("key_label", "key_hash", "connection")
FINDING = (*KEY, "kind", "severity", "sentence")


class Event(StrEnum):
    """What happened; the value is the event's name in Prefect.

    `meaning` describes it, and `payload` lists every field of its payload beside `rotation`.
    """

    meaning: str
    payload: tuple[str, ...]

    def __new__(cls, name: str, meaning: str, payload: tuple[str, ...]) -> Self:
        """Make an event from its name, its meaning and the fields of its payload."""
        event = str.__new__(cls, name)
        event._value_ = name
        event.meaning = meaning
        event.payload = payload
        return event

    KEY_CREATED = "key-rotation.key.created", "A key was created at OpenRouter and written into the ledger.", KEY
    KEY_VERIFIED = "key-rotation.key.verified", "The new key works and has the requested settings.", KEY
    KEY_PUBLISHED = (
        "key-rotation.key.published",
        "One destination holds the new key, as reading it back confirmed.",
        (*KEY, "destination"),
    )
    KEY_REVOKED = "key-rotation.key.revoked", "A superseded key was deleted at OpenRouter.", KEY
    KEY_DISABLED = (
        "key-rotation.key.disabled",
        "A superseded key was disabled; it can be restored until it is deleted.",
        KEY,
    )
    KEY_RESTORED = (
        "key-rotation.key.restored",
        "A superseded key was restored and is the current key again.",
        KEY,
    )
    KEY_REVOCATION_POSTPONED = (
        "key-rotation.key.revocation-postponed",
        "A superseded key may still be in use, so its revocation was postponed.",
        (*KEY, "sentence"),
    )
    KEY_WRITTEN_OFF = (
        "key-rotation.key.written-off",
        "A key that can no longer be revoked was removed from the ledger; it may still be alive.",
        (*KEY, "reason"),
    )
    ROTATION_COMPLETED = "key-rotation.rotation.completed", "Every destination holds the new key.", KEY
    ROTATION_FAILED = (
        "key-rotation.rotation.failed",
        "A run of a rotation failed; `sentence` says what is still safe and what to do.",
        ("step", "sentence"),
    )
    ROTATION_NEEDS_PERSON = (
        "key-rotation.rotation.needs-person",
        "A run failed in a way that does not pass by itself, or its third try failed; `sentence` says what to do.",
        ("step", "sentence"),
    )
    ROTATION_RECOVERED = (
        "key-rotation.rotation.recovered",
        "A run succeeded after a failure that had called for a person.",
        ("sentence",),
    )
    ROTATION_REMOVED = (
        "key-rotation.rotation.removed",
        "A rotation was removed, and none of its keys is left to revoke.",
        (),
    )
    BUDGET_RESTORED = (
        "key-rotation.budget.restored",
        "The period of a carried budget ended; the current key has its full limit again.",
        KEY,
    )
    SETTINGS_APPLIED = "key-rotation.settings.applied", "The rotation's settings were applied to the current key.", KEY
    ORPHAN_FOUND = "key-rotation.orphan.found", "An audit found a live key that is in no ledger.", FINDING
    ORPHAN_REMOVED = "key-rotation.orphan.removed", "An audit with repair deleted an orphan.", KEY
    AUDIT_FINDING = "key-rotation.audit.finding", "An audit found anything else that is worth knowing.", FINDING


def resource(rotation: str) -> dict[str, str]:
    """Return the resource by which automations match a rotation's events."""
    return {
        "prefect.resource.id": f"key-rotation.rotation.{rotation}",
        "prefect.resource.name": rotation,
        "prefect.resource.role": "key-rotation",
    }
