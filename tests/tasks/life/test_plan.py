"""A plan reads everything and writes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sandbox.server import Fault
from tasks.life.plan import plan
from tests.tasks.conftest import FakeWorld


async def planned(world: FakeWorld, **who: Any) -> tuple[list[str], list[str]]:
    """Return what a run would do now."""
    return await plan(world.open(**who), world.rotation)


async def test_a_plan_of_a_first_rotation_names_every_step_and_writes_nothing(world: FakeWorld) -> None:
    """The steps are search, create, verify and publish; afterwards the world is unchanged."""
    vault: Any = world.block
    before = world.everything()

    checked, steps = await planned(world)

    assert steps == [
        "Look at the ledger and the destinations: there is no ledger yet.",
        "Look for keys that this rotation made before its ledger was lost.",
        "Create a key named `checkout service`, with date and marker.",
        "Verify it.",
        "Publish it to `vault-secret/checkout` and read it back.",
    ]
    assert checked == [
        f"OpenRouter at {world.url} accepts the management key.",
        f"secret/{vault.path}#value in Vault at {vault.credentials.url} can be read and written.",
    ]
    assert world.everything() == before


async def test_a_plan_changes_nothing_in_a_world_that_needs_mending(world: FakeWorld) -> None:
    """An interrupted rotation and a due key are reported, and stay as they are."""
    world.change(overlap=timedelta(hours=1))
    await world.rotate()
    former = (await world.held()).label
    await world.rotate()
    held = (await world.held()).label
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=500))
    await world.failure(world.rotate())
    world.app.state.faults.clear()
    world.later(hours=2)
    before = world.everything()

    _, steps = await planned(world)

    pending = world.openrouter.keys[world.openrouter.created[-1]].label
    assert steps == [
        "Look at the ledger and the destinations: a key was created, but no destination holds it.",
        f"Delete the key {pending}, which no destination holds.",
        "Create a key named `checkout service`, with date and marker.",
        "Verify it.",
        "Publish it to `vault-secret/checkout` and read it back.",
        f"Supersede the key {held}; its overlap is 1 hour.",
        f"Check the superseded key {former}, which is due, and revoke it according to the retirement settings.",
    ]
    assert world.everything() == before


async def test_a_plan_of_an_emergency_says_what_dies(world: FakeWorld) -> None:
    """The plan names every older key, because all of them would be revoked."""
    await world.rotate()
    held = await world.held()

    _, steps = await planned(world, emergency=True)

    assert f"Revoke the key {held.label} at once." in steps


async def test_a_plan_of_a_retry_that_a_later_rotation_has_overtaken_names_what_is_due(world: FakeWorld) -> None:
    """Given an emergency that could not revoke the stolen key, a plan names that key, and none that has an overlap."""
    await world.rotate()
    stolen = (await world.held()).label
    again = await world.failed_at("DELETE", "/keys/", 503, emergency=True)
    world.later(minutes=1)
    await world.failure(world.rotate())

    _, steps = await planned(world, **again)

    assert steps == [
        "Look at the ledger and the destinations: this run has completed before, or a later run has rotated since.",
        f"Check the superseded key {stolen}, which is due, and revoke it according to the retirement settings.",
    ]


async def test_a_plan_fails_where_a_run_would(world: FakeWorld) -> None:
    """A rejected management key is reported before anybody starts a run."""
    world.openrouter.accounts[0].management_keys.clear()

    assert "does not accept the management key" in await world.failure(planned(world))
