"""An audit reports every disagreement about keys, rotations and the connection."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from flows.show.audit_report import as_sentence
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, Account
from tasks.audit.findings import Kind, Severity
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.records import Pending, Unresolved
from tasks.model.rotation import Retirement
from tests.memory import Memory
from tests.tasks.audit.account import by_hand, found, marked, only, write
from tests.tasks.conftest import FakeWorld


async def test_a_healthy_rotation_has_no_finding(world: FakeWorld) -> None:
    """The ledger has the current and the superseded key, and the destination holds the current one."""
    await world.rotate()
    await world.rotate()

    report = await world.audit()

    assert report.findings == ()
    assert report.counts is not None
    assert (report.counts.seen, report.counts.of_rotations) == (2, 2)
    assert as_sentence(report).startswith("2 keys checked: 2 managed, 0 unrecorded, 0 unmanaged. No notices.")


async def test_every_workspace_is_looked_at(world: FakeWorld) -> None:
    """Keys of all workspaces are counted, including disabled and expired ones."""
    account = world.openrouter.accounts[0]
    account.workspaces.append("team-b")
    by_hand(world, workspace_id="team-b").disabled = True
    by_hand(world, expires_at="2026-12-17T00:00:00Z")
    world.later(days=2)

    report = await world.audit()

    assert report.counts is not None
    assert report.counts.seen == 2


async def test_a_key_that_another_rotation_records_is_no_orphan(world: FakeWorld) -> None:
    """A key in any ledger is recorded, whichever rotation the ledger belongs to."""
    await world.rotate()
    world.other_stores["billing"], world.store = world.store, Memory()
    world.later(days=1)

    report = await world.audit()

    assert found(report) == {Kind.WITHOUT_DEPLOYMENT}


async def test_an_audit_changes_nothing(world: FakeWorld) -> None:
    """Whatever it finds, it changes no key, no ledger and no destination, and sends no request that could."""
    await world.rotate()
    marked(world)
    world.later(days=2)
    before = world.store.value, [world.openrouter.show(key) for key in world.openrouter.keys.values()]
    world.app.state.requests.clear()

    await world.audit()

    assert (world.store.value, [world.openrouter.show(key) for key in world.openrouter.keys.values()]) == before
    assert {method for method, *_ in world.app.state.requests} == {"GET"}


# --- findings about keys ---


async def test_an_orphan_is_found_with_its_run_and_date(world: FakeWorld) -> None:
    """The orphan is a key of a known run that is in no ledger; the sentence says which run made it, and when."""
    await world.rotate()
    run_id = uuid4()
    world.runs.add(run_id)
    orphan = marked(world, run_id)
    world.later(hours=2)

    report = await world.audit()

    finding = only(report, Kind.ORPHAN)
    assert finding.key_hash == orphan.hash
    assert finding.needs_person
    assert f"made at 2026-12-16 03:30 UTC by run {run_id} of rotation checkout" in finding.sentence
    assert (Event.ORPHAN_FOUND, orphan.hash) in [(event, told.get("key_hash")) for event, told in world.events]


async def test_a_key_that_was_just_made_is_no_orphan_yet(world: FakeWorld) -> None:
    """The run that made it may still be about to record it."""
    await world.rotate()
    marked(world)
    world.later(minutes=59)

    assert (await world.audit()).findings == ()


async def test_the_marker_of_another_server_is_told_and_needs_nobody(world: FakeWorld) -> None:
    """A run that is unknown to this Prefect server may belong to another one, so its key is only a notice."""
    await world.rotate()
    marked(world, uuid4())
    world.later(hours=2)

    finding = only(await world.audit(), Kind.MARKED_NOT_OURS)

    assert not finding.needs_person


@pytest.mark.parametrize(
    ("fields", "days", "words"),
    [
        ({"limit": 5}, 91, "is 91 days old."),
        ({"limit": None}, 0, "has no spending limit."),
        ({"limit": None}, 91, "is 91 days old and has no spending limit."),
        ({"limit": 5, "expires_at": "2026-12-20T00:00:00Z"}, 0, "expires at 2026-12-20 00:00 UTC."),
    ],
)
async def test_a_key_of_no_rotation_is_told_of(world: FakeWorld, fields: dict[str, Any], days: int, words: str) -> None:
    """A key without a rotation that is old, unlimited or about to expire is a notice, on which no person must act."""
    key = by_hand(world, **fields)
    world.later(days=days)

    finding = only(await world.audit(), Kind.UNMANAGED)

    assert finding.key_label == key.label
    assert finding.sentence.endswith(words)
    assert not finding.needs_person


async def test_a_key_of_no_rotation_that_is_in_order_or_dead_is_only_counted(world: FakeWorld) -> None:
    """A new key with a limit needs no attention, and a disabled one is unusable."""
    by_hand(world)
    by_hand(world, limit=None).disabled = True

    report = await world.audit()

    assert report.findings == ()
    assert report.counts is not None
    assert report.counts.unmanaged == 2


# --- findings about rotations ---


async def test_a_superseded_key_past_its_time_is_found(world: FakeWorld) -> None:
    """An hour after its overlap, no run has retired it."""
    await world.rotate()
    await world.rotate()
    world.later(hours=25, minutes=1)

    finding = only(await world.audit(), Kind.SUPERSEDED_KEY_OVERDUE)

    assert finding.key_hash == world.superseded.hash
    assert "was to be revoked at 2026-12-17 03:30 UTC" in finding.sentence


@pytest.mark.parametrize(("days", "overdue"), [(30.9, False), (31.1, True)])
async def test_a_rotation_that_its_schedule_has_forgotten_is_found(
    world: FakeWorld, days: float, overdue: bool
) -> None:
    """A rotation is overdue when its current key is older than the interval with its margin."""
    world.interval = timedelta(days=30)
    await world.rotate()
    world.later(days=days)

    assert (Kind.ROTATION_OVERDUE in found(await world.audit())) is overdue


async def test_a_rotation_without_an_active_schedule_is_never_overdue(world: FakeWorld) -> None:
    """A person rotates it by hand, so that no age is too old."""
    await world.rotate()
    world.later(days=900)

    assert (await world.audit()).findings == ()


async def test_a_destination_that_holds_something_else_is_found(world: FakeWorld) -> None:
    """A person has written into it by hand."""
    await world.rotate()
    await world.block.awrite_secret(b"by hand")

    finding = only(await world.audit(), Kind.DESTINATION_DIFFERS)

    assert finding.severity is Severity.CRITICAL
    assert "vault-secret/checkout holds something else" in finding.sentence


async def test_a_destination_that_cannot_be_read_is_found(world: FakeWorld) -> None:
    """The audit continues, and reports what it could not read."""
    await world.rotate()
    world.vault.sealed = True

    report = await world.audit()

    assert found(report) == {Kind.DESTINATION_UNREADABLE}


@pytest.mark.parametrize("how", ["deleted", "disabled", "expired"])
async def test_a_current_key_that_does_not_work_is_found(world: FakeWorld, how: str) -> None:
    """Consumers fail until the rotation has run, so it must run at once."""
    await world.rotate()
    key = await world.held()
    if how == "deleted":
        world.openrouter.delete_key(key)
    key.disabled = how == "disabled"
    key.expires_at = world.time if how == "expired" else None

    finding = only(await world.audit(), Kind.CURRENT_KEY_UNUSABLE)

    assert finding.severity is Severity.CRITICAL
    words = {"deleted": "does not exist", "disabled": "is disabled", "expired": "has expired"}
    assert words[how] in finding.sentence


@pytest.mark.parametrize("how", ["deleted", "disabled", "enabled"])
async def test_a_superseded_key_that_is_not_as_its_ledger_says_is_found(world: FakeWorld, how: str) -> None:
    """A person has changed or deleted the key at OpenRouter."""
    if how == "enabled":
        world.change(retirement=Retirement(revoke="disable-then-delete").model_dump(), overlap=timedelta(0))
    await world.rotate()
    await world.rotate()
    key = world.key(world.superseded.hash)
    if how == "deleted":
        world.openrouter.delete_key(key)
    key.disabled = how == "disabled"

    finding = only(await world.audit(), Kind.SUPERSEDED_KEY_DIFFERS)

    assert finding.key_hash == key.hash


async def test_a_key_of_another_account_is_not_taken_for_a_deleted_one(world: FakeWorld) -> None:
    """Given a management key of another account, it cannot see the rotation's keys, which may all be alive."""
    await world.rotate()
    account = world.openrouter.accounts[0]
    world.openrouter.accounts.append(Account("user_other", ["elsewhere"], account.management_keys))
    account.management_keys = set()

    report = await world.audit()

    assert found(report) == {Kind.OTHER_ACCOUNT}


async def test_a_ledger_without_a_deployment_is_found(world: FakeWorld) -> None:
    """A person has deleted the deployment instead of removing the rotation."""
    await world.rotate()
    world.is_deployed = False

    assert found(await world.audit()) == {Kind.WITHOUT_DEPLOYMENT}


async def test_a_rotation_whose_deployment_was_renamed_is_rotated_all_the_same(world: FakeWorld) -> None:
    """The audit neither says that the rotation is no longer run, nor advises to remove it."""
    await world.rotate()
    world.is_deployed, world.twins = False, [world.rotation]

    assert found(await world.audit()) == set()


async def test_a_removed_rotation_needs_no_deployment(world: FakeWorld) -> None:
    """Its last key lives until the chosen date, and the audit says where it may still be read."""
    await world.rotate()
    await world.remove(world.time + timedelta(days=10))
    world.is_deployed = False

    report = await world.audit()

    assert found(report) == {Kind.FORMER_PLACE}
    assert not report.needing_person()


@pytest.mark.parametrize(("interval", "grave"), [(timedelta(0), True), (timedelta(days=4), False)])
async def test_a_current_key_that_expires_soon_is_found(world: FakeWorld, interval: timedelta, grave: bool) -> None:
    """A person must act, unless the schedule replaces the key in time."""
    world.change(key={"expires_after": timedelta(days=6)})
    world.interval = interval
    await world.rotate()

    assert only(await world.audit(), Kind.KEY_EXPIRING).needs_person is grave


async def test_an_unfinished_rotation_is_found_after_an_hour(world: FakeWorld) -> None:
    """A run has failed, and no person has retried it."""
    await world.rotate()
    pending = Pending(run_id=uuid4(), connection="openrouter", destinations=(), intended_at=world.time)
    write(world, world.ledger.intended(pending))
    at_once = found(await world.audit())
    world.later(minutes=61)

    finding = only(await world.audit(), Kind.PENDING)

    assert at_once == set()
    assert f"Run {pending.run_id} has left the rotation checkout unfinished" in finding.sentence


async def test_a_half_published_key_of_a_run_at_work_is_no_finding(world: FakeWorld) -> None:
    """For an hour, a destination may hold the key that a run is still publishing."""
    await world.rotate()
    former = world.ledger.current
    await world.rotate()
    current = world.ledger.current
    assert former is not None
    assert current is not None
    pending = Pending(run_id=uuid4(), connection="openrouter", destinations=(), intended_at=world.time, key=current)
    write(world, Ledger(current=former, pending=pending.model_copy(update={"key": current})))

    at_work = found(await world.audit())
    world.later(minutes=61)
    later = found(await world.audit())

    assert at_work == set()
    assert later == {Kind.PENDING, Kind.DESTINATION_DIFFERS}


async def test_a_create_that_never_turned_up_is_found(world: FakeWorld) -> None:
    """It is a notice at first; after an hour, a person must look for the key."""
    await world.rotate()
    entry = Unresolved(run_id=uuid4(), connection="openrouter", since=world.time)
    write(world, world.ledger.model_copy(update={"unresolved": (entry,)}))
    at_first = only(await world.audit(), Kind.UNRESOLVED).needs_person
    world.later(minutes=61)

    assert not at_first
    assert only(await world.audit(), Kind.UNRESOLVED).needs_person


@pytest.mark.parametrize(
    "edit", [{"revision": "many"}, {"emergency": {"run_id": str(uuid4()), "at": "2026-12-24T00:00"}}]
)
async def test_a_ledger_that_cannot_be_read_is_found_and_speaks_for_its_keys(
    world: FakeWorld, edit: dict[str, Any]
) -> None:
    """Its keys are unknown, so no key of its rotation is called an orphan."""
    await world.rotate()
    assert world.store.value is not None
    world.store.value = {**world.store.value, **edit}
    world.later(days=1)

    assert found(await world.audit()) == {Kind.LEDGER_UNREADABLE}


async def test_a_lost_ledger_is_found(world: FakeWorld) -> None:
    """The rotation has a deployment and a key, but no ledger."""
    await world.rotate()
    world.store.value = None
    world.later(days=1)

    finding = only(await world.audit(), Kind.LEDGER_LOST)

    assert (await world.held()).label in finding.sentence


async def test_a_run_at_work_is_not_judged_halfway(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation whose ledger changes during the audit is left to the next one."""
    await world.rotate()
    await world.block.awrite_secret(b"by hand")
    read = world.block.read_content

    async def read_while_a_run_is_at_work() -> Any:
        write(world, world.ledger.written("another run"))
        return await read()

    monkeypatch.setattr(type(world.block), "read_content", lambda _self: read_while_a_run_is_at_work())

    assert found(await world.audit()) == {Kind.IN_CHANGE}


# --- findings about the connection ---


async def test_a_management_key_that_ends_soon_is_found(world: FakeWorld) -> None:
    """The warning comes two weeks ahead, because only a person can replace the key."""
    key = DEFAULT_MANAGEMENT_KEY
    world.openrouter.accounts[0].management_keys_expire[key] = world.time + timedelta(days=13)

    finding = only(await world.audit(), Kind.MANAGEMENT_KEY_EXPIRING)

    assert finding.needs_person
    assert "expires at 2026-12-29 03:30 UTC" in finding.sentence
    assert world.events[0][1]["rotation"] == "connection:openrouter"


async def test_a_management_key_that_is_refused_is_a_finding(world: FakeWorld) -> None:
    """The audit says so in one sentence, instead of reporting every key as missing."""
    await world.rotate()
    world.openrouter.accounts[0].management_keys.clear()

    report = await world.audit()

    assert found(report) == {Kind.MANAGEMENT_KEY_REFUSED}
    assert "does not accept the management key" in as_sentence(report)
