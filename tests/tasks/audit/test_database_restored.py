"""Prefect's database was restored from a backup, or lost: what an audit reports, and what its repair does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from blocks import VaultSecret
from flows.show.audit_report import as_sentence
from tasks.audit.findings import Kind, Severity
from tests.tasks.audit.account import only
from tests.tasks.backup import Backup, everything_is_recorded, restored, revoked_key_is_back
from tests.tasks.conftest import FakeWorld


async def test_an_audit_names_the_held_key_and_since_when_it_is_unrecorded(world: FakeWorld) -> None:
    """The audit itself changes nothing; its sentence says who made the key, when, and which destination holds it."""
    await restored(world)
    key, before = await world.held(), world.everything()

    report = await world.audit()

    finding = only(report, Kind.HELD_KEY_UNRECORDED)
    assert finding.key_hash == key.hash
    assert finding.severity is Severity.CRITICAL
    assert f"The key {key.label} was made at 2026-12-16 05:30 UTC by run " in finding.sentence
    assert finding.sentence.endswith("; it is held by vault-secret/checkout, and is in no ledger.")
    assert world.everything()[:1] == before[:1]


async def test_a_repair_makes_the_key_that_every_destination_holds_current_again(world: FakeWorld) -> None:
    """The key that was current in the backup is superseded with its overlap; no person has to act."""
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
    """The newest key becomes current, a key that consumers have used gets an overlap, and an unused key is deleted."""
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
    assert everything_is_recorded(world)


async def test_destinations_that_hold_different_keys_are_left_to_the_rotation(world: FakeWorld) -> None:
    """The rotation that the audit advises leaves one current key everywhere, and the other keys in their overlap."""
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

    assert (
        "it is held by vault-secret/checkout. Run the rotation, which publishes a new key everywhere."
        in finding.sentence
    )
    assert "run the rotation" in finding.kind.advice
    assert finding.needs_person
    await world.rotate()
    assert everything_is_recorded(world)
    assert len(world.ledger.superseded) == 2
    assert (await world.audit()).findings == ()


@pytest.mark.parametrize("case", ["pending", "another connection", "no deployment"])
async def test_a_held_key_in_doubt_is_left_to_a_person(world: FakeWorld, case: str) -> None:
    """No ledger is changed during a run, without a deployment, or if the deployment names another connection."""
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


async def test_an_audit_says_that_consumers_read_a_revoked_key(world: FakeWorld) -> None:
    """Consumers fail, so the rotation must run at once; the newer key is reported as an orphan."""
    newer = await revoked_key_is_back(world)

    report = await world.audit()

    assert "does not exist at OpenRouter any more" in as_sentence(report)
    assert "Run the rotation at once." in as_sentence(report)
    assert only(report, Kind.ORPHAN).key_hash == newer.hash


async def test_a_server_that_replaces_a_lost_one_says_whose_keys_there_are(world: FakeWorld) -> None:
    """With the database, the installation's id is lost, so a person must put the id back."""
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
    """Keys of the other server are only a notice, because the rotation of that name has a ledger here."""
    await world.rotate()
    key = await world.held()
    key.name = key.name.replace("abcdefg", "another")
    world.store.value = None
    await world.rotate()
    world.later(hours=2)

    assert not only(await world.audit(repair=True), Kind.MARKED_NOT_OURS).needs_person
    assert key.hash in world.openrouter.keys


async def test_a_repair_deletes_no_key_that_the_destination_of_a_second_deployment_holds(world: FakeWorld) -> None:
    """Given a copied deployment with an unchanged rotation name, the consumers of the copy keep their key."""
    other = VaultSecret(credentials=world.block.credentials, path="apps/other")
    one = world.destination

    async def destination(name: str) -> Any:
        return other if name == "vault-secret/other" else await one(name)

    world.destination = destination  # type: ignore[method-assign]
    original = world.deployed = world.rotation
    await world.rotate()
    backup = Backup(world)
    world.change(destinations=["vault-secret/other"])
    world.twins = [world.rotation]
    world.later(hours=2)
    await world.rotate()
    held = (await other.read_content()).value
    world.rotation = original
    backup.restore(world)
    world.later(hours=2)

    finding = only(await world.audit(repair=True), Kind.ORPHAN)

    assert held is not None
    assert world.use(world.openrouter.by_secret[held.get_secret_value()]) == 200
    assert "it is held by vault-secret/other. Run the rotation" in finding.sentence


async def test_the_next_run_finds_the_keys_of_a_workspace_that_the_account_does_not_list(world: FakeWorld) -> None:
    """Given a management key that may not list workspaces, the run searches those that the rotation itself names."""
    world.change(key={"workspace_id": world.other_workspace()})
    world.openrouter.lacks["workspaces"] = 403
    await restored(world, rotations=2)

    await world.rotate()

    assert everything_is_recorded(world)


@pytest.mark.parametrize("number", [0, 1], ids=["the default one", "another"])
async def test_an_audit_finds_the_keys_of_a_workspace_that_the_account_does_not_list(
    world: FakeWorld, number: int
) -> None:
    """The repair makes the key that the destination holds current again, and each key is counted once."""
    world.other_workspace()
    world.change(key={"workspace_id": world.openrouter.accounts[0].workspaces[number]})
    world.openrouter.lacks["workspaces"] = 403
    await restored(world)

    report = await world.audit(repair=True)

    assert only(report, Kind.HELD_KEY_UNRECORDED).repaired
    assert everything_is_recorded(world)
    assert report.counts is not None
    assert report.counts.seen == len(world.openrouter.keys)


async def test_an_audit_passes_over_a_workspace_that_was_deleted(world: FakeWorld) -> None:
    """Given an account that does not list its workspaces, a deleted one that a ledger still names is no failure."""
    workspace = world.other_workspace()
    world.change(key={"workspace_id": workspace})
    await world.rotate()
    world.openrouter.lacks["workspaces"] = 403
    world.openrouter.unknown_workspace_status = 400
    world.delete_workspace(workspace)

    report = await world.audit()

    assert only(report, Kind.OTHER_ACCOUNT).needs_person
