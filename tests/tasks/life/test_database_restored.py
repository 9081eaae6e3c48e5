"""Prefect's database was restored from a backup, pruned or lost: which keys a run finds, and when they end."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from sandbox.openrouter_account import StoredKey
from tasks.life.plan import plan
from tasks.model.keys import marker, read_marker
from tasks.model.ledger import Ledger
from tasks.model.rotation import Retirement
from tests.tasks.backup import everything_is_recorded, restored, revoked_key_is_back
from tests.tasks.conftest import FakeWorld


async def spare(world: FakeWorld) -> StoredKey:
    """Create a key of this rotation that no destination holds."""
    name = f"{marker('checkout', uuid4(), world.id)} spare"
    return world.openrouter.add_key(world.openrouter.accounts[0], {"name": name, "limit": 5})


async def test_the_next_run_takes_up_every_key_that_was_made_after_the_backup(world: FakeWorld) -> None:
    """Given a destination whose key the ledger does not know, all unknown keys are superseded, with an overlap."""
    await restored(world, rotations=2)
    held = await world.held()

    await world.rotate()

    assert everything_is_recorded(world)
    assert len(world.ledger.superseded) == 3
    assert {key.revoke_at for key in world.ledger.superseded} == {world.time + timedelta(days=1)}
    assert world.use(held) == 200
    assert any("The ledger was out of date; keys of this rotation were found again" in note for note in world.notes)
    assert any(held.label in note for note in world.notes)
    world.later(days=1)
    await world.retire()
    assert set(world.openrouter.keys) == {(await world.held()).hash}


@pytest.mark.parametrize("what", ["rotate", "retire"])
@pytest.mark.parametrize("entry", ["pending", "unresolved"])
@pytest.mark.parametrize("is_first", [False, True], ids=["a later rotation", "the first rotation"])
async def test_a_backup_from_the_middle_of_a_rotation_ends_no_key_that_is_held(
    world: FakeWorld, is_first: bool, entry: str, what: str
) -> None:
    """The restored ledger waits for a key as if it were left behind, but that key has been published since."""
    if not is_first:
        await world.rotate()
    before, run_id = Ledger() if is_first else world.ledger, uuid4()
    await world.rotate(run_id=run_id)
    held = await world.held()
    made = {"run_id": str(run_id), "connection": "openrouter"}
    match entry:
        case "pending":
            pending = {**made, "destinations": world.rotation.destinations, "intended_at": world.time.isoformat()}
            world.store.value = {**before.to_json(), "pending": pending}
        case "unresolved":
            world.store.value = {**before.to_json(), "unresolved": [{**made, "since": world.time.isoformat()}]}
    world.later(hours=2)

    await (world.rotate() if what == "rotate" else world.retire())

    assert world.use(held) == 200
    await world.rotate()
    assert everything_is_recorded(world)
    assert world.use(held) == 200


async def test_keys_for_which_the_ledger_has_no_room_do_not_stop_the_rotation(world: FakeWorld) -> None:
    """The keys in destinations are recorded first; an audit settles the others."""
    await restored(world, rotations=8)
    held = await world.held()
    others = [await spare(world) for _ in range(12)]

    await world.rotate()

    assert held.hash in world.ledger.hashes()
    assert any("The ledger has no room for" in note for note in world.notes)
    left = {key.hash for key in others} - world.ledger.hashes()
    assert left
    world.later(hours=2)
    report = await world.audit(repair=True)
    assert report.needing_person() == []
    assert everything_is_recorded(world)


async def test_an_emergency_after_a_restore_ends_the_unknown_keys_at_once(world: FakeWorld) -> None:
    """A key counts as leaked even if the ledger did not know it when the emergency began."""
    await restored(world)

    await world.rotate(emergency=True)

    assert set(world.openrouter.keys) == {(await world.held()).hash}


async def test_a_key_of_another_installation_is_never_taken_up(world: FakeWorld) -> None:
    """A second server may run a rotation of the same name in the same account."""
    await world.rotate()
    key, world.id = await world.held(), "another"
    world.store.value = None

    await world.rotate()

    assert key.hash in world.openrouter.keys
    assert key.hash not in world.ledger.hashes()
    assert any("was made by the installation abcdefg: it was left alone" in note for note in world.notes)


async def test_what_a_person_put_into_a_destination_is_replaced_and_not_revoked(world: FakeWorld) -> None:
    """The run searches for its owner, finds that no rotation made it, and leaves it alive."""
    await world.rotate()
    key = world.openrouter.add_key(world.openrouter.accounts[0], {"name": "by hand", "limit": 5})
    await world.block.awrite_secret(key.secret.encode())

    await world.rotate()

    assert world.use(key) == 200
    assert any("held a secret that this rotation did not make" in note for note in world.notes)


async def test_a_plan_after_a_restore_says_that_keys_will_be_looked_for(world: FakeWorld) -> None:
    """A person who asks for a plan first must not be surprised by the search."""
    await restored(world)
    run = world.open()

    _, steps = await plan(run, world.rotation)

    assert "Look for keys that this rotation made and that its ledger does not know." in steps
    assert run.notes == ["vault-secret/checkout holds a secret that the ledger does not know."]


async def test_a_lost_ledger_is_recovered_although_its_flow_runs_were_pruned(world: FakeWorld) -> None:
    """A key's name contains its rotation and installation, so the search does not depend on Prefect's flow runs."""
    await world.rotate()
    former = await world.held()
    world.store.value = None
    world.runs.clear()

    await world.rotate()

    assert [key.hash for key in world.ledger.superseded] == [former.hash]


async def test_a_rotation_in_steady_state_does_not_ask_which_installation_it_is(world: FakeWorld) -> None:
    """The ledger records the id, which saves a request in every run."""
    for _ in range(3):
        await world.rotate()

    assert world.asked_for_installation == 1
    mark = read_marker((await world.held()).name)
    assert mark is not None
    assert mark.installation == world.id


async def test_the_id_that_a_ledger_remembers_is_its_own(world: FakeWorld) -> None:
    """Given that a person has changed the variable since, keys with either id are this installation's."""
    await world.rotate()
    former = await world.held()
    world.other_stores["billing"], world.store = world.store, type(world.store)()
    world.other_stores["billing"].value = {**world.other_stores["billing"].value, "current": None}
    world.id = "another"

    await world.rotate()

    assert [key.hash for key in world.ledger.superseded] == [former.hash]


async def test_the_next_run_replaces_a_revoked_key_and_says_so(world: FakeWorld) -> None:
    """Even a scheduled run that would find the key too young replaces it."""
    await revoked_key_is_back(world)
    world.change(minimum_age="P7D")

    await world.rotate(scheduled_for=world.time)

    assert world.use(await world.held()) == 200
    assert "The current key did not work any more, so it was replaced before its time." in world.notes
    assert any("was already gone" in note for note in world.notes)


async def test_a_policy_of_use_holds_for_a_key_that_was_found_again(world: FakeWorld) -> None:
    """Under a policy of use, a key that is still in use is not revoked before its quiet time."""
    world.change(retirement=Retirement(retire_when="unused").model_dump())
    await restored(world)
    held = await world.held()
    await world.rotate()
    world.later(hours=24)
    world.spend(held, "0.01")

    await world.retire()

    assert held.hash in world.openrouter.keys
