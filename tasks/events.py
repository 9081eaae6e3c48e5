"""The events that a rotation tells of."""

from enum import StrEnum


class Event(StrEnum):
    """The stable names."""

    KEY_CREATED = "key-rotation.key.created"
    KEY_VERIFIED = "key-rotation.key.verified"
    KEY_PUBLISHED = "key-rotation.key.published"
    KEY_REVOKED = "key-rotation.key.revoked"
    KEY_DISABLED = "key-rotation.key.disabled"
    KEY_RESTORED = "key-rotation.key.restored"
    KEY_REVOCATION_POSTPONED = "key-rotation.key.revocation-postponed"
    ROTATION_COMPLETED = "key-rotation.rotation.completed"
    ROTATION_FAILED = "key-rotation.rotation.failed"
    ROTATION_REMOVED = "key-rotation.rotation.removed"
    ORPHAN_FOUND = "key-rotation.orphan.found"
    ORPHAN_REMOVED = "key-rotation.orphan.removed"
    AUDIT_FINDING = "key-rotation.audit.finding"
    BUDGET_RESTORED = "key-rotation.budget.restored"
    SETTINGS_APPLIED = "key-rotation.settings.applied"
