"""The flows of this project: what deployments run and the dashboard shows."""

from flows.retire import retire
from flows.rotate import rotate
from tasks.rotation import KeySettings, Rotation

__all__ = ["KeySettings", "Rotation", "retire", "rotate"]
