"""A plan looks at everything and writes nothing."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import Any

from sandbox.server import Fault
from tasks.plan import plan
from tests.life.conftest import Life


async def planned(life: Life, **who: Any) -> tuple[list[str], list[str]]:
    """What a run would do now."""
    return await plan(life.open(**who), life.rotation)


async def test_a_plan_of_a_first_rotation_names_every_step_and_writes_nothing(life: Life) -> None:
    """Create, verify, publish; and afterwards nothing is there."""
    checked, steps = await planned(life)

    assert [word in " ".join(steps) for word in ("Create a key", "Verify", "Publish it to `vault-secret/checkout`")]
    assert any("can be read and written" in sentence for sentence in checked)
    assert any("accepts the management key" in sentence for sentence in checked)
    assert life.store.value is None
    assert life.openrouter.created == []
    assert (await life.block.read_held()).value is None


async def test_a_plan_changes_nothing_in_a_world_that_needs_mending(life: Life) -> None:
    """An interrupted rotation and a due key are told, and left as they are."""
    life.change(overlap=timedelta(hours=1))
    await life.rotate()
    await life.rotate()
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=500))
    await life.failure(life.rotate())
    life.app.state.faults.clear()
    life.later(hours=2)
    before = deepcopy(life.store.value), dict(life.openrouter.keys), (await life.held()).hash

    _, steps = await planned(life)

    assert (life.store.value, dict(life.openrouter.keys), (await life.held()).hash) == before
    assert any(step.startswith("Delete the key") for step in steps)
    assert any("which is due" in step for step in steps)


async def test_a_plan_of_an_emergency_says_what_dies(life: Life) -> None:
    """Every older key is named."""
    await life.rotate()
    held = await life.held()

    _, steps = await planned(life, emergency=True)

    assert f"Revoke the key {held.label} and every older one at once." in steps


async def test_a_plan_fails_where_a_run_would(life: Life) -> None:
    """A management key that is not accepted is told before anybody runs anything."""
    life.openrouter.accounts[0].management_keys.clear()

    assert "does not accept the management key" in await life.failure(planned(life))
