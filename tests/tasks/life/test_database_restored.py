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
from tests.tasks.conftest import Life


class Backup:
    """What Prefect's database holds of a rotation, its flow runs among it."""

    def __init__(self, life: Life) -> None:
        self._terms, self._runs = deepcopy(life.store.terms), set(life.runs)

    def restore(self, life: Life) -> None:
        """Put it back; the destination is in another store, and stays as it is."""
        life.store.terms, life.runs = deepcopy(self._terms), set(self._runs)


async def restored(life: Life, rotations: int = 1) -> None:
    """Rotations have come after the backup that is put back; the next look is more than an hour later."""
    await life.rotate()
    backup = Backup(life)
    for _ in range(rotations):
        life.later(hours=2)
        await life.rotate()
    backup.restore(life)
    life.later(hours=2)


async def spare(life: Life) -> StoredKey:
    """A key that this rotation made and nobody holds."""
    name = f"{marker('checkout', uuid4(), life.id)} spare"
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": name, "limit": 5})


def only(report: Report, kind: Kind) -> Finding:
    """The one finding of a kind."""
    (finding,) = [finding for finding in report.findings if finding.kind is kind]
    return finding


def everything_is_explained(life: Life) -> bool:
    """Whether the ledger knows exactly the keys that there are."""
    return set(life.openrouter.keys) == life.ledger.hashes()


# --- the next run ---


async def test_the_next_run_takes_up_every_key_that_was_made_after_the_backup(life: Life) -> None:
    """A destination holds a key that the ledger does not know; all are superseded with their overlap, and then end."""
    await restored(life, rotations=2)
    held = await life.held()

    await life.rotate()

    assert everything_is_explained(life)
    assert len(life.ledger.superseded) == 3
    assert {key.revoke_at for key in life.ledger.superseded} == {life.time + timedelta(days=1)}
    assert life.use(held) == 200
    assert any("The ledger was an earlier one; keys of this rotation were found again" in note for note in life.notes)
    assert any(held.label in note for note in life.notes)
    life.later(days=1)
    await life.retire()
    assert set(life.openrouter.keys) == {(await life.held()).hash}


@pytest.mark.parametrize("what", ["rotate", "retire"])
@pytest.mark.parametrize("entry", ["pending", "unresolved"])
async def test_a_backup_from_the_middle_of_a_rotation_ends_no_key_that_is_held(
    life: Life, entry: str, what: str
) -> None:
    """The restored ledger waits for a key as one that was left behind, and that key was published since."""
    await life.rotate()
    before, run_id = life.ledger, uuid4()
    await life.rotate(run_id=run_id)
    held = await life.held()
    made = {"run_id": str(run_id), "connection": "openrouter"}
    match entry:
        case "pending":
            pending = {**made, "destinations": life.rotation.destinations, "intended_at": life.time.isoformat()}
            life.store.value = {**before.to_json(), "pending": pending}
        case "unresolved":
            life.store.value = {**before.to_json(), "unresolved": [{**made, "since": life.time.isoformat()}]}
    life.later(hours=2)

    await (life.rotate() if what == "rotate" else life.retire())

    assert life.use(held) == 200
    await life.rotate()
    assert everything_is_explained(life)
    assert life.use(held) == 200


async def test_keys_for_which_the_ledger_has_no_room_do_not_stop_the_rotation(life: Life) -> None:
    """What destinations hold comes first; an audit settles the others."""
    await restored(life, rotations=8)
    held = await life.held()
    others = [await spare(life) for _ in range(12)]

    await life.rotate()

    assert held.hash in life.ledger.hashes()
    assert any("The ledger has no room for" in note for note in life.notes)
    left = {key.hash for key in others} - life.ledger.hashes()
    assert left
    life.later(hours=2)
    report = await life.audit(repair=True)
    assert report.needing_person() == []
    assert everything_is_explained(life)


async def test_an_emergency_after_a_restore_ends_the_unknown_keys_at_once(life: Life) -> None:
    """Whatever the ledger knew when it began."""
    await restored(life)

    await life.rotate(emergency=True)

    assert set(life.openrouter.keys) == {(await life.held()).hash}


async def test_a_key_of_another_installation_is_never_taken_up(life: Life) -> None:
    """A second server may run a rotation of the same name in the same account."""
    await life.rotate()
    key, life.id = await life.held(), "another"
    life.store.value = None

    await life.rotate()

    assert key.hash in life.openrouter.keys
    assert key.hash not in life.ledger.hashes()
    assert any("was made by the installation abcdefg: it was left alone" in note for note in life.notes)


async def test_what_a_person_put_into_a_destination_is_replaced_and_not_revoked(life: Life) -> None:
    """A key of the account that no rotation made is looked for, and found to be nobody's here."""
    await life.rotate()
    key = life.openrouter.add_key(life.openrouter.accounts[0], {"name": "by hand", "limit": 5})
    await life.block.awrite_secret(key.secret.encode())

    await life.rotate()

    assert life.use(key) == 200
    assert any("held a secret that this rotation did not make" in note for note in life.notes)


async def test_a_plan_after_a_restore_says_that_keys_will_be_looked_for(life: Life) -> None:
    """Whoever asks first what a run would do is not surprised by it."""
    await restored(life)
    run = life.open()

    _, steps = await plan(run, life.rotation)

    assert "Look for keys that this rotation made and that its ledger does not know." in steps
    assert run.notes == ["vault-secret/checkout holds a secret that the ledger does not know."]


async def test_a_lost_ledger_is_recovered_although_its_flow_runs_were_pruned(life: Life) -> None:
    """Who made a key stands in its name, not in what Prefect remembers of its runs."""
    await life.rotate()
    former = await life.held()
    life.store.value = None
    life.runs.clear()

    await life.rotate()

    assert [key.hash for key in life.ledger.superseded] == [former.hash]


async def test_a_rotation_in_steady_state_does_not_ask_which_installation_it_is(life: Life) -> None:
    """Its ledger remembers it."""
    for _ in range(3):
        await life.rotate()

    assert life.asked_for_installation == 1
    mark = read_marker((await life.held()).name)
    assert mark is not None
    assert mark.installation == life.id


async def test_the_id_that_a_ledger_remembers_is_its_own(life: Life) -> None:
    """The variable was set to another id since; keys with either are this installation's."""
    await life.rotate()
    former = await life.held()
    life.other_stores["billing"], life.store = life.store, type(life.store)()
    life.other_stores["billing"].value = {**life.other_stores["billing"].value, "current": None}
    life.id = "another"

    await life.rotate()

    assert [key.hash for key in life.ledger.superseded] == [former.hash]


# --- an audit ---


async def test_an_audit_names_the_held_key_and_since_when_it_is_unexplained(life: Life) -> None:
    """Nothing is changed; the sentence says who made the key, when, and who holds it."""
    await restored(life)
    key, before = await life.held(), life.everything()

    report = await life.audit()

    finding = only(report, Kind.HELD_KEY_UNRECORDED)
    assert finding.key_hash == key.hash
    assert finding.severity is Severity.CRITICAL
    assert f"The key {key.label} was made at 2026-12-16 05:30 UTC by run " in finding.sentence
    assert finding.sentence.endswith("; vault-secret/checkout holds it, and no ledger explains it.")
    assert life.everything()[:1] == before[:1]


async def test_a_repair_makes_the_key_that_every_destination_holds_current_again(life: Life) -> None:
    """The ledger's own current key is superseded with the overlap; nothing is left to a person."""
    await restored(life)
    held, (former,) = await life.held(), list(life.ledger.hashes())

    report = await life.audit(repair=True)

    current = life.ledger.current
    assert current is not None
    assert (current.hash, current.since, current.destinations) == (
        held.hash,
        held.created_at,
        ("vault-secret/checkout",),
    )
    assert [(key.hash, key.revoke_at) for key in life.ledger.superseded] == [(former, life.time + timedelta(days=1))]
    assert life.retirements[-1] == life.time + timedelta(days=1)
    assert report.needing_person() == []
    assert only(report, Kind.HELD_KEY_UNRECORDED).sentence.endswith("It is the current key again.")
    assert (await life.audit(repair=True)).findings == ()
    assert life.use(held) == life.use(life.key(former)) == 200


async def test_a_repair_settles_all_keys_that_were_made_after_the_backup(life: Life) -> None:
    """The newest is current, one that consumers have used keeps an overlap, one that nobody used is deleted."""
    await life.rotate()
    backup = Backup(life)
    life.later(hours=2)
    await life.rotate()
    used = await life.held()
    life.spend(used, "0.01")
    await life.rotate()
    unused = await life.held()
    life.later(hours=2)
    await life.rotate()
    newest = await life.held()
    backup.restore(life)
    life.later(hours=2)

    report = await life.audit(repair=True)

    current = life.ledger.current
    assert report.needing_person() == []
    assert current is not None
    assert current.hash == newest.hash
    assert used.hash in {key.hash for key in life.ledger.superseded}
    assert unused.hash not in life.openrouter.keys
    assert everything_is_explained(life)


async def test_destinations_that_hold_different_keys_are_left_to_the_rotation(life: Life) -> None:
    """The audit says what to do, and that ends it: one current key everywhere, the others in their overlap."""
    life.change(destinations=["vault-secret/checkout", "vault-secret/other"])
    other = VaultSecret(credentials=life.block.credentials, path="apps/other")
    one = life.destination

    async def destination(name: str) -> Any:
        return other if name == "vault-secret/other" else await one(name)

    life.destination = destination  # type: ignore[method-assign]
    await life.rotate()
    first = await life.held()
    backup = Backup(life)
    life.later(hours=2)
    await life.rotate()
    await other.awrite_secret(first.secret.encode())
    backup.restore(life)
    life.later(hours=2)

    finding = only(await life.audit(repair=True), Kind.HELD_KEY_UNRECORDED)

    assert "vault-secret/checkout holds it. Run the rotation, which publishes a new key everywhere." in finding.sentence
    assert "run the rotation" in finding.kind.advice
    assert finding.needs_person
    await life.rotate()
    assert everything_is_explained(life)
    assert len(life.ledger.superseded) == 2
    assert (await life.audit()).findings == ()


@pytest.mark.parametrize("case", ["pending", "another connection", "no deployment"])
async def test_a_held_key_in_doubt_is_left_to_a_person(life: Life, case: str) -> None:
    """Where a run is under way, or the deployment says otherwise, no ledger is changed."""
    await restored(life)
    match case:
        case "pending":
            pending = {"run_id": str(next(iter(life.runs))), "connection": "openrouter", "destinations": []}
            life.store.value = {**life.store.value, "pending": {**pending, "intended_at": life.time.isoformat()}}
        case "another connection":
            life.deployed = life.rotation.model_copy(update={"connection": "another"})
        case "no deployment":
            life.is_deployed = False
    before = life.ledger

    report = await life.audit(repair=True)

    assert only(report, Kind.HELD_KEY_UNRECORDED).needs_person
    assert (life.ledger.current, life.ledger.superseded) == (before.current, before.superseded)


# --- a destination that was restored, too ---


async def revoked_key_is_back(life: Life) -> Any:
    """A destination in Prefect's own database holds what it held at the backup: a key that was revoked since."""
    life.change(overlap="PT0S")
    await life.rotate()
    backup, former = Backup(life), await life.held()
    life.later(hours=2)
    await life.rotate()
    newer = await life.held()
    backup.restore(life)
    await life.block.awrite_secret(former.secret.encode())
    life.later(hours=2)
    return newer


async def test_an_audit_says_that_consumers_read_a_revoked_key(life: Life) -> None:
    """That is the gravest finding, and the newer key is named."""
    newer = await revoked_key_is_back(life)

    report = await life.audit()

    assert "does not exist at OpenRouter any more" in as_sentence(report)
    assert "Run the rotation at once." in as_sentence(report)
    assert only(report, Kind.ORPHAN).key_hash == newer.hash


async def test_the_next_run_replaces_a_revoked_key_and_says_so(life: Life) -> None:
    """One that would find the key too young as well."""
    await revoked_key_is_back(life)
    life.change(minimum_age="P7D")

    await life.rotate(scheduled_for=life.time)

    assert life.use(await life.held()) == 200
    assert "The current key did not work any more, so it was replaced before its time." in life.notes
    assert any("did not exist any more; somebody else has deleted it" in note for note in life.notes)


# --- another server ---


async def test_a_server_that_replaces_a_lost_one_says_whose_keys_there_are(life: Life) -> None:
    """Everything is lost, the installation's id included: that needs a person, who puts the id back."""
    await life.rotate()
    held = await life.held()
    life.store.value = None
    life.runs.clear()
    life.id = "another"
    life.later(hours=2)

    report = await life.audit(repair=True)
    life.id = "abcdefg"
    repaired = await life.audit(repair=True)

    finding = only(report, Kind.MARKED_NOT_OURS)
    assert finding.needs_person
    assert finding.sentence.endswith(" in the installation abcdefg; this one is another.")
    assert only(repaired, Kind.LEDGER_LOST).repaired
    assert life.ledger.hashes() == {held.hash}


async def test_a_second_server_beside_this_one_needs_nobody(life: Life) -> None:
    """Its keys are a notice once the rotation of that name has a ledger here."""
    await life.rotate()
    key = await life.held()
    key.name = key.name.replace("abcdefg", "another")
    life.store.value = None
    await life.rotate()
    life.later(hours=2)

    assert not only(await life.audit(repair=True), Kind.MARKED_NOT_OURS).needs_person
    assert key.hash in life.openrouter.keys


async def test_a_policy_of_use_holds_for_a_key_that_was_found_again(life: Life) -> None:
    """A key that somebody still uses is not revoked before it is quiet."""
    life.change(retirement=Retirement(retire_when="unused").model_dump())
    await restored(life)
    held = await life.held()
    await life.rotate()
    life.later(hours=24)
    life.spend(held, "0.01")

    await life.retire()

    assert held.hash in life.openrouter.keys
