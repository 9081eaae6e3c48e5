"""What the parameters of a run tell, whether or not they are valid."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.model.parameters import rotation_name


@pytest.mark.parametrize(
    ("parameters", "rotation"),
    [({"rotation": {"name": "a"}}, "a"), ({"rotation": "a"}, "a"), ({"rotation": {}}, "none"), ({}, "none")],
)
def test_the_rotation_of_a_run_is_what_its_parameters_name(parameters: dict[str, Any], rotation: str) -> None:
    """The parameters contain the rotation's settings, or only its name."""
    assert rotation_name(parameters, "none") == rotation
