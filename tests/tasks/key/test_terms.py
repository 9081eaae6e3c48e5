"""What a new key inherits from its predecessor, whatever OpenRouter shows of that."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.tasks.conftest import FakeWorld


@pytest.mark.parametrize("reset", ["yearly", ""])
@pytest.mark.parametrize("emergency", [False, True])
async def test_a_limit_reset_that_cannot_be_set_stops_no_rotation(
    world: FakeWorld, reset: str, emergency: bool
) -> None:
    """OpenRouter documents it as any text; a leaked key must not live on because of it."""
    world.change(key={"inherit": True, "limit_usd": None, "limit_reset": "none"})
    await world.rotate()
    former = await world.held()
    former.limit, former.limit_reset = Decimal(5), reset

    await world.rotate(emergency=emergency)

    key = await world.held()
    assert (key.hash != former.hash, key.limit, key.limit_reset) == (True, Decimal(5), None)
    assert (former.hash in world.openrouter.keys) is not emergency
    assert any("Name limit_reset on the rotation" in note for note in world.notes) is (reset == "yearly")
