"""An audit repairs only what is beyond doubt."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
from tests.tasks.conftest import Life


async def test_repair_deletes_an_orphan(life: Life) -> None:
    """The official SDK does not find it any more; the rotation's own keys live on, and a second audit is content."""
    await life.rotate()
    await life.rotate()
    own = await sdk_hashes(life)
    orphan = marked(life)
    life.later(hours=2)

    report = await life.audit(repair=True)

    finding = only(report, Kind.ORPHAN)
    assert finding.repaired
    assert not finding.needs_person
    assert await sdk_hashes(life) == own
    assert (Event.ORPHAN_REMOVED, orphan.hash) in [(event, told.get("key_hash")) for event, told in life.events]
    assert (await life.audit(repair=True)).findings == ()


async def keeps(life: Life, key: StoredKey, why: str) -> None:
    """Repair leaves a key as it is and says why, as the official SDK confirms."""
    shown = life.openrouter.show(key)

    report = await life.audit(repair=True)

    assert key.hash in await sdk_hashes(life)
    assert life.openrouter.show(key) == shown
    assert not any(finding.repaired for finding in report.findings)
    assert why in " ".join(finding.sentence for finding in report.findings)


async def test_repair_keeps_a_key_that_was_just_made(life: Life) -> None:
    """Within an hour its run may still be at work."""
    await life.rotate()
    key = marked(life)
    life.later(minutes=59)

    await keeps(life, key, "")


async def test_repair_keeps_a_key_of_another_server(life: Life) -> None:
    """It belongs to somebody."""
    await life.rotate()
    key = marked(life, uuid4())
    life.later(hours=2)

    await keeps(life, key, "which this Prefect server does not know")


async def test_repair_keeps_a_key_of_nobody(life: Life) -> None:
    """Without a marker nothing is ever changed."""
    await life.rotate()
    key = by_hand(life, limit=None)
    life.later(days=100)

    await keeps(life, key, "belongs to no rotation")


async def test_repair_keeps_an_orphan_that_a_destination_holds(life: Life) -> None:
    """Somebody has put it there: consumers read it."""
    await life.rotate()
    key = marked(life)
    await life.block.awrite_secret(key.secret.encode())
    life.later(hours=2)

    await keeps(life, key, "It was not repaired: vault-secret/checkout holds it.")


async def test_repair_keeps_an_orphan_where_a_destination_cannot_be_read(life: Life) -> None:
    """Nobody knows whether it is held there."""
    await life.rotate()
    key = marked(life)
    life.later(hours=2)
    life.vault.sealed = True

    await keeps(life, key, "It was not repaired: ")


async def test_repair_supersedes_an_orphan_that_somebody_uses(life: Life) -> None:
    """Whoever read it while a destination held it keeps it for the overlap, as after any rotation."""
    await life.rotate()
    key = marked(life)
    life.later(hours=2)
    life.spend(key, "0.01")

    finding = only(await life.audit(repair=True), Kind.ORPHAN)

    assert finding.repaired
    assert finding.sentence.endswith("It has been used, so it is superseded now and ends at 2026-12-17 05:30 UTC.")
    assert [(former.hash, former.revoke_at) for former in life.ledger.superseded] == [
        (key.hash, life.time + life.rotation.overlap)
    ]
    assert life.retirements == [life.time + life.rotation.overlap]
    assert life.use(key) == 200
    life.later(days=1)
    await life.retire()
    assert key.hash not in life.openrouter.keys


async def test_repair_keeps_a_used_orphan_whose_overlap_nobody_knows(life: Life) -> None:
    """Without a deployment a person decides when it ends."""
    await life.rotate()
    key = marked(life)
    life.is_deployed = False
    life.later(hours=2)
    life.spend(key, "0.01")

    await keeps(life, key, "It was not repaired: it has been used, and without a valid deployment nobody knows")


async def test_repair_keeps_an_orphan_whose_rotation_is_not_known_any_more(life: Life) -> None:
    """Without ledger and deployment nobody knows its destinations."""
    await life.rotate()
    key = marked(life, rotation="gone")
    life.later(hours=2)

    await keeps(life, key, "without its rotation's ledger and destinations")


async def test_repair_leaves_a_create_whose_outcome_is_open_to_the_next_run(life: Life) -> None:
    """The ledger waits for this very key: the run that is retried deletes it."""
    await life.rotate()
    key = marked(life)
    run_id = next(run for run in life.runs if str(run) in key.name)
    entry = Unresolved(run_id=run_id, connection="openrouter", since=life.time)
    write(life, life.ledger.model_copy(update={"unresolved": (entry,)}))
    life.later(hours=2)

    await keeps(life, key, "the next run of the rotation deletes it")


async def test_repair_keeps_a_key_that_its_ledger_explains_by_now(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the rotation's slot the ledger is read once more, and it is that reading that counts."""
    await life.rotate()
    current = await life.held()
    explaining, life.store.value = life.store.value, Ledger(current=None).to_json()
    life.later(hours=2)
    opened = life.opened

    def opened_after_the_ledger_came_back(name: str) -> Any:
        life.store.value = explaining
        return opened(name)

    monkeypatch.setattr(life, "opened", opened_after_the_ledger_came_back)

    await keeps(life, current, "a ledger explains it now")


async def test_repair_stops_where_another_run_takes_over(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is asked right before the deletion."""
    await life.rotate()
    key = marked(life)
    life.later(hours=2)
    opened, read = life.opened, life.block.read_content

    async def read_while_another_run_writes() -> Any:
        life.store.terms[max(life.store.terms) + 1] = life.ledger.written("another run").to_json()
        return await read()

    def opened_and_lost(name: str) -> Any:
        monkeypatch.setattr(type(life.block), "read_content", lambda _self: read_while_another_run_writes())
        return opened(name)

    monkeypatch.setattr(life, "opened", opened_and_lost)

    await keeps(life, key, "It was not repaired: Another run")


async def test_repair_keeps_an_orphan_that_cannot_be_looked_at_again(life: Life) -> None:
    """OpenRouter fails between the audit's look and the repair."""
    await life.rotate()
    key = marked(life)
    life.later(hours=2)
    life.app.state.faults.add(Fault("before", "GET", f"/keys/{key.hash}", status=403, body=FORBIDDEN))

    await keeps(life, key, "It was not repaired: ")


async def test_a_deletion_whose_answer_was_lost_is_told_as_repaired_by_the_next_audit(life: Life) -> None:
    """Repair is idempotent: what is gone is gone."""
    await life.rotate()
    key = marked(life)
    life.later(hours=2)
    life.app.state.faults.add(Fault("after", "DELETE", "/keys/", status=403, body=FORBIDDEN))
    await life.audit(repair=True)
    life.app.state.faults.clear()

    report = await life.audit(repair=True)

    assert key.hash in life.openrouter.deleted
    assert report.findings == ()


async def test_repair_writes_a_lost_ledger_anew(life: Life) -> None:
    """One key, and the destination holds it: the next rotation supersedes it with its overlap, as ever."""
    await life.rotate()
    before = life.ledger.current
    life.store.value = None
    life.later(days=1)

    report = await life.audit(repair=True)

    restored = life.ledger.current
    assert before is not None
    assert restored is not None
    assert only(report, Kind.LEDGER_LOST).repaired
    assert (restored.hash, restored.fingerprint, restored.made_by) == (before.hash, before.fingerprint, before.made_by)
    assert restored.destinations == before.destinations
    assert (await life.audit(repair=True)).findings == ()
    await life.rotate()
    assert life.superseded.hash == before.hash
    assert life.use(life.key(before.hash)) == 200


@pytest.mark.parametrize("case", ["two keys", "another secret", "dead key", "not deployed", "unreadable"])
async def test_a_lost_ledger_in_doubt_is_left_to_a_person(life: Life, case: str) -> None:
    """Nothing is written, and no key is touched: the rotation finds its keys by itself and gives them their overlap."""
    await life.rotate()
    if case == "two keys":
        await life.rotate()
    life.store.value = None
    match case:
        case "another secret":
            await life.block.awrite_secret(b"by hand")
        case "dead key":
            (await life.held()).disabled = True
        case "not deployed":
            life.is_deployed = False
        case "unreadable":
            life.vault.sealed = True
    keys = await sdk_hashes(life)
    life.later(days=1)

    report = await life.audit(repair=True)

    assert life.store.value is None
    assert await sdk_hashes(life) == keys
    assert report.needing_person()


async def test_all_orphans_of_a_rotation_are_repaired_in_one_slot(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot is taken once, and the ledgers are read once for all of them."""
    await life.rotate()
    orphans = [marked(life) for _ in range(5)]
    held = marked(life)
    await life.block.awrite_secret(held.secret.encode())
    life.later(hours=2)
    opened = life.opened
    slots: list[str] = []
    reads: list[str] = []

    def counted(name: str) -> Any:
        slots.append(name)
        reads.clear()
        return opened(name)

    def read() -> AsyncIterator[tuple[str, Any]]:
        reads.append("the ledgers")
        return ledgers()

    ledgers = life.ledgers
    monkeypatch.setattr(life, "opened", counted)
    monkeypatch.setattr(life, "ledgers", read)

    report = await life.audit(repair=True)

    assert slots == ["checkout"]
    assert len(reads) == 1
    assert {finding.key_hash for finding in report.findings if finding.repaired} == {key.hash for key in orphans}
    assert {finding.kind for finding in report.needing_person()} == {Kind.HELD_KEY_UNRECORDED, Kind.DESTINATION_DIFFERS}
