"""An audit repairs only what is beyond doubt."""

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
    """The official SDK does not find it any more; the rotation's own keys live on, and a second audit is content."""
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
    """Repair leaves a key as it is and says why, as the official SDK confirms."""
    shown = world.openrouter.show(key)

    report = await world.audit(repair=True)

    assert key.hash in await sdk_hashes(world)
    assert world.openrouter.show(key) == shown
    assert not any(finding.repaired for finding in report.findings)
    assert why in " ".join(finding.sentence for finding in report.findings)


async def test_repair_keeps_a_key_that_was_just_made(world: FakeWorld) -> None:
    """Within an hour its run may still be at work."""
    await world.rotate()
    key = marked(world)
    world.later(minutes=59)

    await keeps(world, key, "")


async def test_repair_keeps_a_key_of_another_server(world: FakeWorld) -> None:
    """It belongs to somebody."""
    await world.rotate()
    key = marked(world, uuid4())
    world.later(hours=2)

    await keeps(world, key, "which this Prefect server does not know")


async def test_repair_keeps_a_key_of_nobody(world: FakeWorld) -> None:
    """Without a marker nothing is ever changed."""
    await world.rotate()
    key = by_hand(world, limit=None)
    world.later(days=100)

    await keeps(world, key, "belongs to no rotation")


async def test_repair_keeps_an_orphan_that_a_destination_holds(world: FakeWorld) -> None:
    """Somebody has put it there: consumers read it."""
    await world.rotate()
    key = marked(world)
    await world.block.awrite_secret(key.secret.encode())
    world.later(hours=2)

    await keeps(world, key, "It was not repaired: it is held by vault-secret/checkout.")


async def test_repair_keeps_an_orphan_where_a_destination_cannot_be_read(world: FakeWorld) -> None:
    """Nobody knows whether it is held there."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    world.vault.sealed = True

    await keeps(world, key, "It was not repaired: ")


async def test_repair_supersedes_an_orphan_that_somebody_uses(world: FakeWorld) -> None:
    """Whoever read it while a destination held it keeps it for the overlap, as after any rotation."""
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
    """Without a deployment a person decides when it ends."""
    await world.rotate()
    key = marked(world)
    world.is_deployed = False
    world.later(hours=2)
    world.spend(key, "0.01")

    await keeps(world, key, "It was not repaired: it has been used, and without a valid deployment nobody knows")


async def test_repair_keeps_an_orphan_whose_rotation_is_not_known_any_more(world: FakeWorld) -> None:
    """Without ledger and deployment nobody knows its destinations."""
    await world.rotate()
    key = marked(world, rotation="gone")
    world.later(hours=2)

    await keeps(world, key, "without its rotation's ledger and destinations")


async def test_repair_leaves_a_create_whose_outcome_is_open_to_the_next_run(world: FakeWorld) -> None:
    """The ledger waits for this very key: the run that is retried deletes it."""
    await world.rotate()
    key = marked(world)
    run_id = next(run for run in world.runs if str(run) in key.name)
    entry = Unresolved(run_id=run_id, connection="openrouter", since=world.time)
    write(world, world.ledger.model_copy(update={"unresolved": (entry,)}))
    world.later(hours=2)

    await keeps(world, key, "the next run of the rotation deletes it")


async def test_repair_keeps_a_key_that_its_ledger_explains_by_now(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the rotation's slot the ledger is read once more, and it is that reading that counts."""
    await world.rotate()
    current = await world.held()
    explaining, world.store.value = world.store.value, Ledger(current=None).to_json()
    world.later(hours=2)
    opened = world.opened

    def opened_after_the_ledger_came_back(name: str) -> Any:
        world.store.value = explaining
        return opened(name)

    monkeypatch.setattr(world, "opened", opened_after_the_ledger_came_back)

    await keeps(world, current, "it is in a ledger now")


async def test_repair_stops_where_another_run_takes_over(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is asked right before the deletion."""
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
    """OpenRouter fails between the audit's look and the repair."""
    await world.rotate()
    key = marked(world)
    world.later(hours=2)
    world.app.state.faults.add(Fault("before", "GET", f"/keys/{key.hash}", status=403, body=FORBIDDEN))

    await keeps(world, key, "It was not repaired: ")


async def test_a_deletion_whose_answer_was_lost_is_told_as_repaired_by_the_next_audit(world: FakeWorld) -> None:
    """Repair is idempotent: what is gone is gone."""
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
    """One key, and the destination holds it: the next rotation supersedes it with its overlap, as ever."""
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
    """Nothing is written, and no key is touched: the rotation finds its keys by itself and gives them their overlap."""
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
    """The slot is taken once, and the ledgers are read once for all of them."""
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
    """Given an account that shows no last use, the calls of a free model are seen by the account's analytics alone."""
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
