"""The flows of this project: what deployments run and the dashboard shows."""

from flows.apply_settings import apply_settings
from flows.audit import audit
from flows.remove_rotation import remove_rotation
from flows.restore_key import restore_key
from flows.retire import retire
from flows.rotate import rotate
from tasks.rotation import KeySettings, Retirement, Rotation

__all__ = [
    "KeySettings",
    "Retirement",
    "Rotation",
    "apply_settings",
    "audit",
    "remove_rotation",
    "restore_key",
    "retire",
    "rotate",
]
