"""Prefect's database is restored from a backup, pruned, or lost: which keys are found again, and how it ends."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from blocks import VaultSecret
from flows.show.audit_report import as_sentence
from sandbox.openrouter_account import StoredKey
from tasks.audit.findings import Finding, Kind, Report, Severity
from tasks.life.plan import plan
from tasks.model.keys import marker, read_marker
from tasks.model.rotation import Retirement
from tests.tasks.conftest import FakeWorld


class Backup:
    """What Prefect's database holds of a rotation, its flow runs among it."""

    def __init__(self, world: FakeWorld) -> None:
        self._terms, self._runs = deepcopy(world.store.terms), set(world.runs)

    def restore(self, world: FakeWorld) -> None:
        """Put it back; the destination is in another store, and stays as it is."""
        world.store.terms, world.runs = deepcopy(self._terms), set(self._runs)


async def restored(world: FakeWorld, rotations: int = 1) -> None:
    """Rotations have come after the backup that is put back; the next look is more than an hour later."""
    await world.rotate()
    backup = Backup(world)
    for _ in range(rotations):
        world.later(hours=2)
        await world.rotate()
    backup.restore(world)
    world.later(hours=2)


async def spare(world: FakeWorld) -> StoredKey:
    """A key that this rotation made and nobody holds."""
    name = f"{marker('checkout', uuid4(), world.id)} spare"
    return world.openrouter.add_key(world.openrouter.accounts[0], {"name": name, "limit": 5})


def only(report: Report, kind: Kind) -> Finding:
    """The one finding of a kind."""
    (finding,) = [finding for finding in report.findings if finding.kind is kind]
    return finding


def everything_is_explained(world: FakeWorld) -> bool:
    """Whether the ledger knows exactly the keys that there are."""
    return set(world.openrouter.keys) == world.ledger.hashes()


# --- the next run ---


async def test_the_next_run_takes_up_every_key_that_was_made_after_the_backup(world: FakeWorld) -> None:
    """A destination holds a key that the ledger does not know; all are superseded with their overlap, and then end."""
    await restored(world, rotations=2)
    held = await world.held()

    await world.rotate()

    assert everything_is_explained(world)
    assert len(world.ledger.superseded) == 3
    assert {key.revoke_at for key in world.ledger.superseded} == {world.time + timedelta(days=1)}
    assert world.use(held) == 200
    assert any("The ledger was an earlier one; keys of this rotation were found again" in note for note in world.notes)
    assert any(held.label in note for note in world.notes)
    world.later(days=1)
    await world.retire()
    assert set(world.openrouter.keys) == {(await world.held()).hash}


@pytest.mark.parametrize("what", ["rotate", "retire"])
@pytest.mark.parametrize("entry", ["pending", "unresolved"])
async def test_a_backup_from_the_middle_of_a_rotation_ends_no_key_that_is_held(
    world: FakeWorld, entry: str, what: str
) -> None:
    """The restored ledger waits for a key as one that was left behind, and that key was published since."""
    await world.rotate()
    before, run_id = world.ledger, uuid4()
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
    assert everything_is_explained(world)
    assert world.use(held) == 200


async def test_keys_for_which_the_ledger_has_no_room_do_not_stop_the_rotation(world: FakeWorld) -> None:
    """What destinations hold comes first; an audit settles the others."""
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
    assert everything_is_explained(world)


async def test_an_emergency_after_a_restore_ends_the_unknown_keys_at_once(world: FakeWorld) -> None:
    """Whatever the ledger knew when it began."""
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
    """A key of the account that no rotation made is looked for, and found to be nobody's here."""
    await world.rotate()
    key = world.openrouter.add_key(world.openrouter.accounts[0], {"name": "by hand", "limit": 5})
    await world.block.awrite_secret(key.secret.encode())

    await world.rotate()

    assert world.use(key) == 200
    assert any("held a secret that this rotation did not make" in note for note in world.notes)


async def test_a_plan_after_a_restore_says_that_keys_will_be_looked_for(world: FakeWorld) -> None:
    """Whoever asks first what a run would do is not surprised by it."""
    await restored(world)
    run = world.open()

    _, steps = await plan(run, world.rotation)

    assert "Look for keys that this rotation made and that its ledger does not know." in steps
    assert run.notes == ["vault-secret/checkout holds a secret that the ledger does not know."]


async def test_a_lost_ledger_is_recovered_although_its_flow_runs_were_pruned(world: FakeWorld) -> None:
    """Who made a key stands in its name, not in what Prefect remembers of its runs."""
    await world.rotate()
    former = await world.held()
    world.store.value = None
    world.runs.clear()

    await world.rotate()

    assert [key.hash for key in world.ledger.superseded] == [former.hash]


async def test_a_rotation_in_steady_state_does_not_ask_which_installation_it_is(world: FakeWorld) -> None:
    """Its ledger remembers it."""
    for _ in range(3):
        await world.rotate()

    assert world.asked_for_installation == 1
    mark = read_marker((await world.held()).name)
    assert mark is not None
    assert mark.installation == world.id


async def test_the_id_that_a_ledger_remembers_is_its_own(world: FakeWorld) -> None:
    """The variable was set to another id since; keys with either are this installation's."""
    await world.rotate()
    former = await world.held()
    world.other_stores["billing"], world.store = world.store, type(world.store)()
    world.other_stores["billing"].value = {**world.other_stores["billing"].value, "current": None}
    world.id = "another"

    await world.rotate()

    assert [key.hash for key in world.ledger.superseded] == [former.hash]


# --- an audit ---


async def test_an_audit_names_the_held_key_and_since_when_it_is_unexplained(world: FakeWorld) -> None:
    """Nothing is changed; the sentence says who made the key, when, and who holds it."""
    await restored(world)
    key, before = await world.held(), world.everything()

    report = await world.audit()

    finding = only(report, Kind.HELD_KEY_UNRECORDED)
    assert finding.key_hash == key.hash
    assert finding.severity is Severity.CRITICAL
    assert f"The key {key.label} was made at 2026-12-16 05:30 UTC by run " in finding.sentence
    assert finding.sentence.endswith("; vault-secret/checkout holds it, and no ledger explains it.")
    assert world.everything()[:1] == before[:1]


async def test_a_repair_makes_the_key_that_every_destination_holds_current_again(world: FakeWorld) -> None:
    """The ledger's own current key is superseded with the overlap; nothing is left to a person."""
    await restored(world)
    held, (former,) = await world.held(), list(world.ledger.hashes())

    report = await world.audit(repair=True)

    current = world.ledger.current
    assert current is not None
    assert (current.hash, current.since, current.destinations) == (
        held.hash,
        held.created_at,
        ("vault-secret/checkout",),
    )
    assert [(key.hash, key.revoke_at) for key in world.ledger.superseded] == [(former, world.time + timedelta(days=1))]
    assert world.retirements[-1] == world.time + timedelta(days=1)
    assert report.needing_person() == []
    assert only(report, Kind.HELD_KEY_UNRECORDED).sentence.endswith("It is the current key again.")
    assert (await world.audit(repair=True)).findings == ()
    assert world.use(held) == world.use(world.key(former)) == 200


async def test_a_repair_settles_all_keys_that_were_made_after_the_backup(world: FakeWorld) -> None:
    """The newest is current, one that consumers have used keeps an overlap, one that nobody used is deleted."""
    await world.rotate()
    backup = Backup(world)
    world.later(hours=2)
    await world.rotate()
    used = await world.held()
    world.spend(used, "0.01")
    await world.rotate()
    unused = await world.held()
    world.later(hours=2)
    await world.rotate()
    newest = await world.held()
    backup.restore(world)
    world.later(hours=2)

    report = await world.audit(repair=True)

    current = world.ledger.current
    assert report.needing_person() == []
    assert current is not None
    assert current.hash == newest.hash
    assert used.hash in {key.hash for key in world.ledger.superseded}
    assert unused.hash not in world.openrouter.keys
    assert everything_is_explained(world)


async def test_destinations_that_hold_different_keys_are_left_to_the_rotation(world: FakeWorld) -> None:
    """The audit says what to do, and that ends it: one current key everywhere, the others in their overlap."""
    world.change(destinations=["vault-secret/checkout", "vault-secret/other"])
    other = VaultSecret(credentials=world.block.credentials, path="apps/other")
    one = world.destination

    async def destination(name: str) -> Any:
        return other if name == "vault-secret/other" else await one(name)

    world.destination = destination  # type: ignore[method-assign]
    await world.rotate()
    first = await world.held()
    backup = Backup(world)
    world.later(hours=2)
    await world.rotate()
    await other.awrite_secret(first.secret.encode())
    backup.restore(world)
    world.later(hours=2)

    finding = only(await world.audit(repair=True), Kind.HELD_KEY_UNRECORDED)

    assert "vault-secret/checkout holds it. Run the rotation, which publishes a new key everywhere." in finding.sentence
    assert "run the rotation" in finding.kind.advice
    assert finding.needs_person
    await world.rotate()
    assert everything_is_explained(world)
    assert len(world.ledger.superseded) == 2
    assert (await world.audit()).findings == ()


@pytest.mark.parametrize("case", ["pending", "another connection", "no deployment"])
async def test_a_held_key_in_doubt_is_left_to_a_person(world: FakeWorld, case: str) -> None:
    """Where a run is under way, or the deployment says otherwise, no ledger is changed."""
    await restored(world)
    match case:
        case "pending":
            pending = {"run_id": str(next(iter(world.runs))), "connection": "openrouter", "destinations": []}
            world.store.value = {**world.store.value, "pending": {**pending, "intended_at": world.time.isoformat()}}
        case "another connection":
            world.deployed = world.rotation.model_copy(update={"connection": "another"})
        case "no deployment":
            world.is_deployed = False
    before = world.ledger

    report = await world.audit(repair=True)

    assert only(report, Kind.HELD_KEY_UNRECORDED).needs_person
    assert (world.ledger.current, world.ledger.superseded) == (before.current, before.superseded)


# --- a destination that was restored, too ---


async def revoked_key_is_back(world: FakeWorld) -> Any:
    """A destination in Prefect's own database holds what it held at the backup: a key that was revoked since."""
    world.change(overlap="PT0S")
    await world.rotate()
    backup, former = Backup(world), await world.held()
    world.later(hours=2)
    await world.rotate()
    newer = await world.held()
    backup.restore(world)
    await world.block.awrite_secret(former.secret.encode())
    world.later(hours=2)
    return newer


async def test_an_audit_says_that_consumers_read_a_revoked_key(world: FakeWorld) -> None:
    """That is the gravest finding, and the newer key is named."""
    newer = await revoked_key_is_back(world)

    report = await world.audit()

    assert "does not exist at OpenRouter any more" in as_sentence(report)
    assert "Run the rotation at once." in as_sentence(report)
    assert only(report, Kind.ORPHAN).key_hash == newer.hash


async def test_the_next_run_replaces_a_revoked_key_and_says_so(world: FakeWorld) -> None:
    """One that would find the key too young as well."""
    await revoked_key_is_back(world)
    world.change(minimum_age="P7D")

    await world.rotate(scheduled_for=world.time)

    assert world.use(await world.held()) == 200
    assert "The current key did not work any more, so it was replaced before its time." in world.notes
    assert any("did not exist any more; somebody else has deleted it" in note for note in world.notes)


# --- another server ---


async def test_a_server_that_replaces_a_lost_one_says_whose_keys_there_are(world: FakeWorld) -> None:
    """Everything is lost, the installation's id included: that needs a person, who puts the id back."""
    await world.rotate()
    held = await world.held()
    world.store.value = None
    world.runs.clear()
    world.id = "another"
    world.later(hours=2)

    report = await world.audit(repair=True)
    world.id = "abcdefg"
    repaired = await world.audit(repair=True)

    finding = only(report, Kind.MARKED_NOT_OURS)
    assert finding.needs_person
    assert finding.sentence.endswith(" in the installation abcdefg; this one is another.")
    assert only(repaired, Kind.LEDGER_LOST).repaired
    assert world.ledger.hashes() == {held.hash}


async def test_a_second_server_beside_this_one_needs_nobody(world: FakeWorld) -> None:
    """Its keys are a notice once the rotation of that name has a ledger here."""
    await world.rotate()
    key = await world.held()
    key.name = key.name.replace("abcdefg", "another")
    world.store.value = None
    await world.rotate()
    world.later(hours=2)

    assert not only(await world.audit(repair=True), Kind.MARKED_NOT_OURS).needs_person
    assert key.hash in world.openrouter.keys


async def test_a_policy_of_use_holds_for_a_key_that_was_found_again(world: FakeWorld) -> None:
    """A key that somebody still uses is not revoked before it is quiet."""
    world.change(retirement=Retirement(retire_when="unused").model_dump())
    await restored(world)
    held = await world.held()
    await world.rotate()
    world.later(hours=24)
    world.spend(held, "0.01")

    await world.retire()

    assert held.hash in world.openrouter.keys
