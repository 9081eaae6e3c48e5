"""An audit repairs only what is beyond doubt, and leaves everything else to a person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.audit.findings import Kind
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.records import Unresolved
from tests.tasks.audit.account import FORBIDDEN, by_hand, marked, only, sdk_hashes, write
from tests.tasks.conftest import FakeWorld


async def test_repair_deletes_an_orphan(world: FakeWorld) -> None:
    """The official SDK no longer finds it; the rotation's own keys live on, and a second audit finds nothing."""
    await world.rotate()
    await world.rotate()
    own = await sdk_hashes(world)
    orphan = marked(world)
    world.later(hours=2)

    report = await world.audit(repair=True)

    finding = only(report, Kind.ORPHAN)
    assert finding.repaired
    assert not finding.needs_person
    assert await sdk_hashes(world) == own
    assert (Event.ORPHAN_REMOVED, orphan.hash) in [(event, told.get("key_hash")) for event, told in world.events]
    assert (await world.audit(repair=True)).findings == ()


async def keeps(world: FakeWorld, key: StoredKey, why: str) -> None:
    """Verify that a repair keeps a key and says why, as the official SDK confirms."""
    shown = world.openrouter.show(key)

    report = await world.audit(repair=True)

    assert key.hash in await sdk_hashes(world)
    assert world.openrouter.show(key) == shown
    assert not any(finding.repaired for finding in report.findings)
    assert why in " ".join(finding.sentence for finding in report.findings)


async def test_repair_keeps_a_key_that_was_just_made(world: FakeWorld) -> None:
    """For an hour, the run that made it may still record it."""
    await world.rotate()
    key = marked(world)
    world.later(minutes=59)

    await keeps(world, key, "")


async def test_repair_keeps_a_key_of_another_server(world: FakeWorld) -> None:
    """The other server may still use it."""
    await world.rotate()
    key = marked(world, uuid4())
    world.later(hours=2)

    await keeps(world, key, "which this Prefect server does not know")


async def test_repair_keeps_a_key_of_nobody(world: FakeWorld) -> None:
    """A key without a marker was not made by a rotation, so no repair may change it."""
    await world.rotate()
    key = by_hand(world, limit=None)
    world.later(days=100)

    await keeps(world, key, "belongs to no rotation")


async def test_repair_keeps_an_orphan_that_a_destination_holds(world: FakeWorld) -> None:
    """A person has put it there, so consumers read it."""
    await world.rotate()
    key = marked(world)
    await world.block.awrite_secret(key.secret.encode())
    world.later(hours=2)

    await keeps(world, key, "It was not repaired: it is held by vault-secret/checkout.")


async def test_repair_keeps_an_orphan_where_a_destination_cannot_be_read(world: FakeWorld) -> None:
    """The unreadable destination may hold the orphan."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    world.vault.sealed = True

    await keeps(world, key, "It was not repaired: ")


async def test_repair_supersedes_an_orphan_that_somebody_uses(world: FakeWorld) -> None:
    """Consumers may have read it while a destination held it, so it gets an overlap, as after any rotation."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    world.spend(key, "0.01")

    finding = only(await world.audit(repair=True), Kind.ORPHAN)

    assert finding.repaired
    assert finding.sentence.endswith("It has been used, so it is superseded now and ends at 2026-12-17 05:30 UTC.")
    assert [(former.hash, former.revoke_at) for former in world.ledger.superseded] == [
        (key.hash, world.time + world.rotation.overlap)
    ]
    assert world.retirements == [world.time + world.rotation.overlap]
    assert world.use(key) == 200
    world.later(days=1)
    await world.retire()
    assert key.hash not in world.openrouter.keys


async def test_repair_keeps_a_used_orphan_whose_overlap_nobody_knows(world: FakeWorld) -> None:
    """Without a deployment the length of its overlap is unknown, so a person decides when it ends."""
    await world.rotate()
    key = marked(world)
    world.is_deployed = False
    world.later(hours=2)
    world.spend(key, "0.01")

    await keeps(world, key, "It was not repaired: it has been used, and without a valid deployment nobody knows")


async def test_repair_keeps_an_orphan_whose_rotation_is_not_known_any_more(world: FakeWorld) -> None:
    """Without a ledger and a deployment, its destinations are unknown."""
    await world.rotate()
    key = marked(world, rotation="gone")
    world.later(hours=2)

    await keeps(world, key, "without its rotation's ledger and destinations")


async def test_repair_leaves_a_create_whose_outcome_is_open_to_the_next_run(world: FakeWorld) -> None:
    """The ledger waits for this very key: the next run settles it."""
    await world.rotate()
    key = marked(world)
    run_id = next(run for run in world.runs if str(run) in key.name)
    entry = Unresolved(run_id=run_id, connection="openrouter", since=world.time)
    write(world, world.ledger.model_copy(update={"unresolved": (entry,)}))
    world.later(hours=2)

    await keeps(world, key, "the next run of the rotation settles it")


async def test_repair_keeps_a_key_that_its_ledger_records_by_now(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a deletion the ledger is read again in the rotation's slot, as a run may have recorded the key."""
    await world.rotate()
    current = await world.held()
    recording, world.store.value = world.store.value, Ledger(current=None).to_json()
    world.later(hours=2)
    opened = world.opened

    def opened_after_the_ledger_came_back(name: str) -> Any:
        world.store.value = recording
        return opened(name)

    monkeypatch.setattr(world, "opened", opened_after_the_ledger_came_back)

    await keeps(world, current, "it is in a ledger now")


async def test_repair_stops_where_another_run_takes_over(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard checks the ledger immediately before the deletion."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    opened, read = world.opened, world.block.read_content

    async def read_while_another_run_writes() -> Any:
        world.store.terms[max(world.store.terms) + 1] = world.ledger.written("another run").to_json()
        return await read()

    def opened_and_lost(name: str) -> Any:
        monkeypatch.setattr(type(world.block), "read_content", lambda _self: read_while_another_run_writes())
        return opened(name)

    monkeypatch.setattr(world, "opened", opened_and_lost)

    await keeps(world, key, "It was not repaired: Another run")


async def test_repair_keeps_an_orphan_that_cannot_be_looked_at_again(world: FakeWorld) -> None:
    """OpenRouter fails between comparison and repair, so that nothing proves any more that the key is unused."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    world.app.state.faults.add(Fault("before", "GET", f"/keys/{key.hash}", status=403, body=FORBIDDEN))

    await keeps(world, key, "It was not repaired: ")


async def test_a_deletion_whose_answer_was_lost_is_told_as_repaired_by_the_next_audit(world: FakeWorld) -> None:
    """A repair is idempotent: the next audit no longer finds the key."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    world.app.state.faults.add(Fault("after", "DELETE", "/keys/", status=403, body=FORBIDDEN))
    await world.audit(repair=True)
    world.app.state.faults.clear()

    report = await world.audit(repair=True)

    assert key.hash in world.openrouter.deleted
    assert report.findings == ()


async def test_repair_writes_a_lost_ledger_anew(world: FakeWorld) -> None:
    """Given a single key that the destination holds, the next rotation supersedes it with its overlap as usual."""
    await world.rotate()
    before = world.ledger.current
    world.store.value = None
    world.later(days=1)

    report = await world.audit(repair=True)

    restored = world.ledger.current
    assert before is not None
    assert restored is not None
    assert only(report, Kind.LEDGER_LOST).repaired
    assert (restored.hash, restored.fingerprint, restored.made_by) == (before.hash, before.fingerprint, before.made_by)
    assert restored.destinations == before.destinations
    assert (await world.audit(repair=True)).findings == ()
    await world.rotate()
    assert world.superseded.hash == before.hash
    assert world.use(world.key(before.hash)) == 200


@pytest.mark.parametrize("case", ["two keys", "another secret", "dead key", "not deployed", "unreadable"])
async def test_a_lost_ledger_in_doubt_is_left_to_a_person(world: FakeWorld, case: str) -> None:
    """The repair changes nothing, because the next rotation finds its keys by their markers and supersedes them."""
    await world.rotate()
    if case == "two keys":
        await world.rotate()
    world.store.value = None
    match case:
        case "another secret":
            await world.block.awrite_secret(b"by hand")
        case "dead key":
            (await world.held()).disabled = True
        case "not deployed":
            world.is_deployed = False
        case "unreadable":
            world.vault.sealed = True
    keys = await sdk_hashes(world)
    world.later(days=1)

    report = await world.audit(repair=True)

    assert world.store.value is None
    assert await sdk_hashes(world) == keys
    assert report.needing_person()


async def test_all_orphans_of_a_rotation_are_repaired_in_one_slot(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all orphans of a rotation, the slot is acquired once and the ledgers are read once."""
    await world.rotate()
    orphans = [marked(world) for _ in range(5)]
    held = marked(world)
    await world.block.awrite_secret(held.secret.encode())
    world.later(hours=2)
    opened = world.opened
    slots: list[str] = []
    reads: list[str] = []

    def counted(name: str) -> Any:
        slots.append(name)
        reads.clear()
        return opened(name)

    def read() -> AsyncIterator[tuple[str, Any]]:
        reads.append("the ledgers")
        return ledgers()

    ledgers = world.ledgers
    monkeypatch.setattr(world, "opened", counted)
    monkeypatch.setattr(world, "ledgers", read)

    report = await world.audit(repair=True)

    assert slots == ["checkout"]
    assert len(reads) == 1
    assert {finding.key_hash for finding in report.findings if finding.repaired} == {key.hash for key in orphans}
    assert {finding.kind for finding in report.needing_person()} == {Kind.HELD_KEY_UNRECORDED, Kind.DESTINATION_DIFFERS}


@pytest.mark.parametrize("part", ["", "analytics"], ids=["with analytics", "without"])
async def test_repair_deletes_no_orphan_that_somebody_used_at_no_cost(world: FakeWorld, part: str) -> None:
    """Given an account without last-used dates, only the analytics show calls of a free model."""
    await world.rotate()
    key = marked(world)
    world.openrouter.with_last_used_at, world.openrouter.cost = False, Decimal(0)
    world.later(hours=2)
    assert world.use(key) == 200
    world.openrouter.lacks |= {part: 404} if part else {}
    world.later(hours=1)

    finding = only(await world.audit(repair=True), Kind.ORPHAN)

    assert finding.repaired
    assert [former.hash for former in world.ledger.superseded] == ([] if part else [key.hash])
