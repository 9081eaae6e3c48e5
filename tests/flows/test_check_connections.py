"""How a check of all connections and destinations treats those that several deployments name."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from blocks.errors import ServiceError
from flows.check_connections import Checked, _checked, blocks_in_use, fail_shared_places, named_connections
from tasks.model.management_keys import InUse
from tasks.world.checks import BlockCheck

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


async def test_a_connection_works_although_the_age_of_its_key_cannot_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server that stores no variable for now, the report of all other blocks is not lost."""
    since = datetime(2027, 3, 1, tzinfo=UTC)
    used = InUse(connection="openrouter", fingerprint="abc", since=since, remind_after=timedelta(days=90))

    async def check(*_: object) -> BlockCheck:
        return BlockCheck("It can list keys.", None, in_use=used)

    async def refuse(_: InUse) -> InUse:
        raise ServiceError("Prefect's API failed while storing it.")

    # The package has a flow of the module's name.
    module = sys.modules["flows.check_connections"]
    monkeypatch.setattr(module, "check_block", check)
    monkeypatch.setattr(module, "remember_use", refuse)

    found = await _checked("openrouter-credentials/openrouter", ("checkout",), {}, asyncio.Semaphore(1))

    assert found.works
    assert found.why == "It can list keys. Prefect's API failed while storing it."


def test_a_connection_is_in_use_although_its_rotation_cannot_be_read_for_now() -> None:
    """The age of its management key must be kept, so that a person is warned in time."""
    damaged = {"name": "checkout", "parameters": {"rotation": {**ROTATION, "destinations": []}}}

    used, _ = blocks_in_use([damaged])

    assert used == {}
    assert named_connections([damaged, {"name": "other", "parameters": {"rotation": 5}}]) == {"openrouter"}
