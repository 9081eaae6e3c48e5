"""A plan looks at everything and writes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sandbox.server import Fault
from tasks.life.plan import plan
from tests.tasks.conftest import Life


async def planned(life: Life, **who: Any) -> tuple[list[str], list[str]]:
    """What a run would do now."""
    return await plan(life.open(**who), life.rotation)


async def test_a_plan_of_a_first_rotation_names_every_step_and_writes_nothing(life: Life) -> None:
    """Look for what was lost, create, verify, publish; and afterwards the world is what it was."""
    vault: Any = life.block
    before = life.everything()

    checked, steps = await planned(life)

    assert steps == [
        "It finds: there is no ledger yet.",
        "Look for keys that this rotation made before its ledger was lost.",
        "Create a key named `checkout service`, with date and marker.",
        "Verify it.",
        "Publish it to `vault-secret/checkout` and read it back.",
    ]
    assert checked == [
        f"OpenRouter at {life.url} accepts the management key.",
        f"secret/{vault.path}#value in Vault at {vault.credentials.url} can be read and written.",
    ]
    assert life.everything() == before


async def test_a_plan_changes_nothing_in_a_world_that_needs_mending(life: Life) -> None:
    """An interrupted rotation and a due key are told, and left as they are."""
    life.change(overlap=timedelta(hours=1))
    await life.rotate()
    former = (await life.held()).label
    await life.rotate()
    held = (await life.held()).label
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=500))
    await life.failure(life.rotate())
    life.app.state.faults.clear()
    life.later(hours=2)
    before = life.everything()

    _, steps = await planned(life)

    pending = life.openrouter.keys[life.openrouter.created[-1]].label
    assert steps == [
        "It finds: a key was created, but no destination holds it.",
        f"Delete the key {pending}, which no destination holds.",
        "Create a key named `checkout service`, with date and marker.",
        "Verify it.",
        "Publish it to `vault-secret/checkout` and read it back.",
        f"Supersede the key {held}; its overlap is 1 hour.",
        f"Look at the superseded key {former}, which is due, and revoke it as its policy asks.",
    ]
    assert life.everything() == before


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
