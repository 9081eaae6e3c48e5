"""The flows of this project: what deployments run and the dashboard shows."""

from flows.add_rotation import add_rotation
from flows.check_connections import check_connections
from flows.retire import retire
from flows.rotate import rotate
from tasks.rotation import KeySettings, Rotation

__all__ = ["KeySettings", "Rotation", "add_rotation", "check_connections", "retire", "rotate"]
