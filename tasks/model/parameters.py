"""What the parameters of a deployment or a run tell, before anything has validated them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rotation_name(parameters: Any, otherwise: str) -> str:
    """Return the name of the rotation in the parameters of a deployment or a run.

    Args:
        parameters: The parameters.
        otherwise: The name to return if they contain none.
    """
    rotation = parameters.get("rotation") if isinstance(parameters, Mapping) else None
    name = rotation.get("name") if isinstance(rotation, Mapping) else rotation
    return name if isinstance(name, str) and name else otherwise


def is_emergency(parameters: Mapping[str, Any]) -> bool:
    """Return whether a run with these parameters is an emergency."""
    return parameters.get("emergency") is True
