"""The flows that the deployments run, and what runs them; imports `tasks` and `blocks`."""

from flows.add_rotation import add_rotation
from flows.apply_settings import apply_settings
from flows.audit import audit
from flows.check_connections import check_connections
from flows.overview import overview
from flows.remove_rotation import remove_rotation
from flows.restore_key import restore_key
from flows.retire import retire
from flows.rotate import rotate
from flows.write_off_key import write_off_key
from tasks.model.rotation import KeySettings, Retirement, Rotation

__all__ = [
    "KeySettings",
    "Retirement",
    "Rotation",
    "add_rotation",
    "apply_settings",
    "audit",
    "check_connections",
    "overview",
    "remove_rotation",
    "restore_key",
    "retire",
    "rotate",
    "write_off_key",
]
