"""How a check of all connections and destinations treats those that several deployments name."""

from __future__ import annotations

from typing import Any

from flows.check_connections import Checked, blocks_in_use, fail_shared_places, named_connections

ROTATION: dict[str, Any] = {
    "name": "checkout",
    "connection": "openrouter",
    "key": {"name": "checkout service"},
    "destinations": ["secret/checkout"],
}


def test_a_destination_that_a_copied_deployment_names_once_more_works() -> None:
    """Both deployments belong to one rotation, which does not overwrite its own key; the overview reports the copy."""
    copies = [{"name": name, "parameters": {"rotation": ROTATION}} for name in ("checkout", "checkout-eu")]

    used, unreadable = blocks_in_use(copies)

    checked = Checked("secret/checkout", used["secret/checkout"], works=True, why="It works.", place="secret/checkout")
    assert unreadable == []
    assert checked.used_by == ("checkout",)
    assert fail_shared_places([checked]) == [checked]


def test_a_connection_is_in_use_although_its_rotation_cannot_be_read_for_now() -> None:
    """The age of its management key must be kept, so that a person is warned in time."""
    damaged = {"name": "checkout", "parameters": {"rotation": {**ROTATION, "destinations": []}}}

    used, _ = blocks_in_use([damaged])

    assert used == {}
    assert named_connections([damaged, {"name": "other", "parameters": {"rotation": 5}}]) == {"openrouter"}
