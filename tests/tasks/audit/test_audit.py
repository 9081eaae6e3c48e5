"""An audit finds what does not agree, and repairs only what is beyond doubt."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from blocks.destination import Content
from blocks.errors import NotFoundError
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.keys import ApiKey, CurrentKey
from blocks.openrouter.lists import KeyList, ListKind
from flows.audit import audit_each, check_order
from flows.show.audit_report import MAX_ROWS, as_description, as_sentence, as_summary, as_table
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, Account, OpenRouterSandbox, StoredKey
from sandbox.server import Fault
from sandbox.stack import CHECKOUT
from tasks.audit.compare import OPEN_AT_ONCE, RUNS_AT_ONCE
from tasks.audit.findings import MOST_KEPT, Finding, Kind, Report, Severity
from tasks.audit.ledgers import connections_in_use
from tasks.model.events import Event
from tasks.model.keys import fingerprint, marker
from tasks.model.ledger import Ledger
from tasks.model.records import Current, Pending, Unresolved
from tasks.model.rotation import Retirement
from tests.memory import Memory
from tests.tasks.conftest import Life

FORBIDDEN = '{"error": {"code": 403, "message": "no"}}'


def marked(life: Life, run_id: UUID | None = None, rotation: str = "checkout", **fields: Any) -> StoredKey:
    """A key with a marker that no ledger explains; its run is known here unless it is named."""
    if run_id is None:
        life.runs.add(run_id := uuid4())
    name = f"{marker(rotation, run_id)} left behind"
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": name, "limit": 5, **fields})


def by_hand(life: Life, **fields: Any) -> StoredKey:
    """A key that somebody made by hand."""
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": "by hand", "limit": 5, **fields})


def write(life: Life, ledger: Ledger) -> None:
    """Put a ledger in place of the stored one."""
    life.store.value = ledger.to_json()


def found(report: Report) -> set[Kind]:
    """What was found, by kind."""
    return {finding.kind for finding in report.findings}


def only(report: Report, kind: Kind) -> Finding:
    """The one finding of a kind."""
    (finding,) = [finding for finding in report.findings if finding.kind is kind]
    return finding


async def sdk_hashes(life: Life) -> set[str]:
    """The hashes of all keys, as the official SDK lists them."""
    answer = await life.sdk().api_keys.list_async(include_disabled=True)
    return {key.hash for key in answer.data}


# --- nothing to find ---


async def test_a_healthy_rotation_has_no_finding(life: Life) -> None:
    """Current and superseded keys are explained, and the destination holds the current one."""
    await life.rotate()
    await life.rotate()

    report = await life.audit()

    assert report.findings == ()
    assert report.counts is not None
    assert (report.counts.seen, report.counts.of_rotations) == (2, 2)
    assert as_sentence(report).startswith("2 keys checked: 2 managed, 0 unrecorded, 0 unmanaged. No notices.")


async def test_every_workspace_is_looked_at(life: Life) -> None:
    """Keys of all workspaces are counted, disabled and expired ones included."""
    account = life.openrouter.accounts[0]
    account.workspaces.append("team-b")
    by_hand(life, workspace_id="team-b").disabled = True
    by_hand(life, expires_at="2026-12-17T00:00:00Z")
    life.later(days=2)

    report = await life.audit()

    assert report.counts is not None
    assert report.counts.seen == 2


async def test_a_key_that_another_rotation_explains_is_no_orphan(life: Life) -> None:
    """All ledgers are asked, whatever rotation they are of."""
    await life.rotate()
    life.other_stores["billing"], life.store = life.store, Memory()
    life.later(days=1)

    report = await life.audit()

    assert found(report) == {Kind.WITHOUT_DEPLOYMENT}


async def test_an_audit_changes_nothing(life: Life) -> None:
    """Neither a key nor the ledger nor a destination, whatever is found; and no request could have."""
    await life.rotate()
    marked(life)
    life.later(days=2)
    before = life.store.value, [life.openrouter.show(key) for key in life.openrouter.keys.values()]
    life.app.state.requests.clear()

    await life.audit()

    assert (life.store.value, [life.openrouter.show(key) for key in life.openrouter.keys.values()]) == before
    assert {method for method, *_ in life.app.state.requests} == {"GET"}


# --- findings about keys ---


async def test_an_orphan_is_found_with_its_run_and_date(life: Life) -> None:
    """A key of a known run that no ledger explains; the sentence says who made it, and when."""
    await life.rotate()
    run_id = uuid4()
    life.runs.add(run_id)
    orphan = marked(life, run_id)
    life.later(hours=2)

    report = await life.audit()

    finding = only(report, Kind.ORPHAN)
    assert finding.key_hash == orphan.hash
    assert finding.needs_person
    assert f"made at 2026-12-16 03:30 UTC by run {run_id} of rotation checkout" in finding.sentence
    assert (Event.ORPHAN_FOUND, orphan.hash) in [(event, told.get("key_hash")) for event, told in life.events]


async def test_a_key_that_was_just_made_is_no_orphan_yet(life: Life) -> None:
    """Its run may still be at work."""
    await life.rotate()
    marked(life)
    life.later(minutes=59)

    assert (await life.audit()).findings == ()


async def test_the_marker_of_another_server_is_told_and_needs_nobody(life: Life) -> None:
    """A run that this Prefect server does not know may be anybody's."""
    await life.rotate()
    marked(life, uuid4())
    life.later(hours=2)

    finding = only(await life.audit(), Kind.MARKED_NOT_OURS)

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
async def test_a_key_of_no_rotation_is_told_of(life: Life, fields: dict[str, Any], days: int, words: str) -> None:
    """Where it is old, may spend without end, or is about to end; that is a notice, and no failure."""
    key = by_hand(life, **fields)
    life.later(days=days)

    finding = only(await life.audit(), Kind.OF_NOBODY)

    assert finding.key_label == key.label
    assert finding.sentence.endswith(words)
    assert not finding.needs_person


async def test_a_key_of_no_rotation_that_is_in_order_or_dead_is_only_counted(life: Life) -> None:
    """A young one with a limit, and one that nobody can use."""
    by_hand(life)
    by_hand(life, limit=None).disabled = True

    report = await life.audit()

    assert report.findings == ()
    assert report.counts is not None
    assert report.counts.of_nobody == 2


# --- findings about rotations ---


async def test_a_superseded_key_past_its_time_is_found(life: Life) -> None:
    """Nobody has retired it an hour after its overlap has ended."""
    await life.rotate()
    await life.rotate()
    life.later(hours=25, minutes=1)

    finding = only(await life.audit(), Kind.SUPERSEDED_KEY_OVERDUE)

    assert finding.key_hash == life.superseded.hash
    assert "was to be revoked at 2026-12-17 03:30 UTC" in finding.sentence


@pytest.mark.parametrize(("days", "overdue"), [(30.9, False), (31.1, True)])
async def test_a_rotation_that_its_schedule_has_forgotten_is_found(life: Life, days: float, overdue: bool) -> None:
    """The current key is older than interval and margin."""
    life.interval = timedelta(days=30)
    await life.rotate()
    life.later(days=days)

    assert (Kind.ROTATION_OVERDUE in found(await life.audit())) is overdue


async def test_a_rotation_without_an_active_schedule_is_never_overdue(life: Life) -> None:
    """It is rotated by hand."""
    await life.rotate()
    life.later(days=900)

    assert (await life.audit()).findings == ()


async def test_a_destination_that_holds_something_else_is_found(life: Life) -> None:
    """Somebody has written into it by hand."""
    await life.rotate()
    await life.block.awrite_secret(b"by hand")

    finding = only(await life.audit(), Kind.DESTINATION_DIFFERS)

    assert finding.severity is Severity.CRITICAL
    assert "vault-secret/checkout holds something else" in finding.sentence


async def test_a_destination_that_cannot_be_read_is_found(life: Life) -> None:
    """The audit goes on, and says what could not be looked at."""
    await life.rotate()
    life.vault.sealed = True

    report = await life.audit()

    assert found(report) == {Kind.DESTINATION_UNREADABLE}


@pytest.mark.parametrize("how", ["deleted", "disabled", "expired"])
async def test_a_current_key_that_does_not_work_is_found(life: Life, how: str) -> None:
    """Consumers fail: the rotation must run at once."""
    await life.rotate()
    key = await life.held()
    if how == "deleted":
        life.openrouter.delete_key(key)
    key.disabled = how == "disabled"
    key.expires_at = life.time if how == "expired" else None

    finding = only(await life.audit(), Kind.CURRENT_KEY_UNUSABLE)

    assert finding.severity is Severity.CRITICAL
    words = {"deleted": "does not exist", "disabled": "is disabled", "expired": "has expired"}
    assert words[how] in finding.sentence


@pytest.mark.parametrize("how", ["deleted", "disabled", "enabled"])
async def test_a_superseded_key_that_is_not_as_its_ledger_says_is_found(life: Life, how: str) -> None:
    """Somebody has changed it at OpenRouter."""
    if how == "enabled":
        life.change(retirement=Retirement(revoke="disable-then-delete").model_dump(), overlap=timedelta(0))
    await life.rotate()
    await life.rotate()
    key = life.key(life.superseded.hash)
    if how == "deleted":
        life.openrouter.delete_key(key)
    key.disabled = how == "disabled"

    finding = only(await life.audit(), Kind.SUPERSEDED_KEY_DIFFERS)

    assert finding.key_hash == key.hash


async def test_a_key_of_another_account_is_not_taken_for_a_deleted_one(life: Life) -> None:
    """The connection's management key was exchanged for one of another account."""
    await life.rotate()
    account = life.openrouter.accounts[0]
    life.openrouter.accounts.append(Account("user_other", ["elsewhere"], account.management_keys))
    account.management_keys = set()

    report = await life.audit()

    assert found(report) == {Kind.OTHER_ACCOUNT}


async def test_a_ledger_without_a_deployment_is_found(life: Life) -> None:
    """Somebody has deleted the deployment instead of removing the rotation."""
    await life.rotate()
    life.is_deployed = False

    assert found(await life.audit()) == {Kind.WITHOUT_DEPLOYMENT}


async def test_a_removed_rotation_needs_no_deployment(life: Life) -> None:
    """Its last key lives on until the date that was chosen, and the audit says where it may still be read."""
    await life.rotate()
    await life.remove(life.time + timedelta(days=10))
    life.is_deployed = False

    report = await life.audit()

    assert found(report) == {Kind.FORMER_PLACE}
    assert not report.needing_person()


@pytest.mark.parametrize(("interval", "grave"), [(timedelta(0), True), (timedelta(days=4), False)])
async def test_a_current_key_that_expires_soon_is_found(life: Life, interval: timedelta, grave: bool) -> None:
    """It needs a person unless the schedule replaces it in time."""
    life.change(key={"expires_after": timedelta(days=6)})
    life.interval = interval
    await life.rotate()

    assert only(await life.audit(), Kind.KEY_EXPIRING).needs_person is grave


async def test_an_unfinished_rotation_is_found_after_an_hour(life: Life) -> None:
    """A run has failed, and nobody has retried it."""
    await life.rotate()
    pending = Pending(run_id=uuid4(), connection="openrouter", destinations=(), intended_at=life.time)
    write(life, life.ledger.intended(pending))
    at_once = found(await life.audit())
    life.later(minutes=61)

    finding = only(await life.audit(), Kind.PENDING)

    assert at_once == set()
    assert f"Run {pending.run_id} has left the rotation checkout unfinished" in finding.sentence


async def test_a_half_published_key_of_a_run_at_work_is_no_finding(life: Life) -> None:
    """A destination may hold the key that is being published, for an hour."""
    await life.rotate()
    former = life.ledger.current
    await life.rotate()
    current = life.ledger.current
    assert former is not None
    assert current is not None
    pending = Pending(run_id=uuid4(), connection="openrouter", destinations=(), intended_at=life.time, key=current)
    write(life, Ledger(current=former, pending=pending.model_copy(update={"key": current})))

    at_work = found(await life.audit())
    life.later(minutes=61)
    later = found(await life.audit())

    assert at_work == set()
    assert later == {Kind.PENDING, Kind.DESTINATION_DIFFERS}


async def test_a_create_that_never_turned_up_is_found(life: Life) -> None:
    """A notice at first; after an hour somebody has to look."""
    await life.rotate()
    entry = Unresolved(run_id=uuid4(), connection="openrouter", since=life.time)
    write(life, life.ledger.model_copy(update={"unresolved": (entry,)}))
    at_first = only(await life.audit(), Kind.UNRESOLVED).needs_person
    life.later(minutes=61)

    assert not at_first
    assert only(await life.audit(), Kind.UNRESOLVED).needs_person


async def test_a_ledger_that_cannot_be_read_is_found_and_speaks_for_its_keys(life: Life) -> None:
    """Nobody knows what it explains, so none of its rotation's keys is called an orphan."""
    await life.rotate()
    assert life.store.value is not None
    life.store.value = {**life.store.value, "revision": "many"}
    life.later(days=1)

    assert found(await life.audit()) == {Kind.LEDGER_UNREADABLE}


async def test_a_lost_ledger_is_found(life: Life) -> None:
    """The rotation is deployed and has a key, and no ledger."""
    await life.rotate()
    life.store.value = None
    life.later(days=1)

    finding = only(await life.audit(), Kind.LEDGER_LOST)

    assert (await life.held()).label in finding.sentence


async def test_a_run_at_work_is_not_judged_halfway(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation whose ledger changes while it is looked at is left to the next audit."""
    await life.rotate()
    await life.block.awrite_secret(b"by hand")
    read = life.block.read_content

    async def read_while_a_run_is_at_work() -> Any:
        write(life, life.ledger.written("another run"))
        return await read()

    monkeypatch.setattr(type(life.block), "read_content", lambda _self: read_while_a_run_is_at_work())

    assert found(await life.audit()) == {Kind.IN_CHANGE}


# --- findings about the connection ---


async def test_a_management_key_that_ends_soon_is_found(life: Life) -> None:
    """Two weeks ahead: only a person can make a new one."""
    key = DEFAULT_MANAGEMENT_KEY
    life.openrouter.accounts[0].management_keys_expire[key] = life.time + timedelta(days=13)

    finding = only(await life.audit(), Kind.MANAGEMENT_KEY_EXPIRING)

    assert finding.needs_person
    assert "expires at 2026-12-29 03:30 UTC" in finding.sentence
    assert life.events[0][1]["rotation"] == "connection:openrouter"


async def test_a_management_key_that_is_refused_is_a_finding(life: Life) -> None:
    """The audit says so in one sentence, instead of telling that every key is gone."""
    await life.rotate()
    life.openrouter.accounts[0].management_keys.clear()

    report = await life.audit()

    assert found(report) == {Kind.MANAGEMENT_KEY_REFUSED}
    assert "does not accept the management key" in as_sentence(report)


# --- repair ---


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


# --- as people read it ---


async def test_the_table_holds_no_secret_and_says_what_to_do(life: Life) -> None:
    """A reviewer reads what was found, how grave it is, and what to do; never a key."""
    await life.rotate()
    marked(life)
    life.later(hours=2)
    report = await life.audit()

    shown = f"{as_table(report)} {as_description(report, 'run-1')} {life.events}"

    assert "Audit with repair" in shown
    assert "Flow run: run-1" in shown
    assert "Keys checked: 2" in shown
    assert not any(secret in shown for secret in life.openrouter.secrets)


def test_the_manual_lists_every_kind_of_finding_with_its_severity() -> None:
    """What the artifact says can be looked up."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", (CHECKOUT / "docs/how-to/audit.md").read_text(), re.MULTILINE)

    assert dict(rows) == {kind.value: kind.severity.name.lower() for kind in Kind}


def test_an_audit_without_findings_says_so_in_its_table() -> None:
    """An empty table could be taken for an audit that did not run."""
    (row,) = as_table(Report("openrouter", Life().time, None, ()))

    assert row["details"] == "No findings."


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ((None, 90, False), "connection"),
        (("Open Router", 90, False), "connection"),
        (("openrouter", -1, False), "older_than_days"),
        (("openrouter", "90", False), "older_than_days"),
        (("openrouter", True, False), "older_than_days"),
        (("openrouter", 90, "yes"), "repair"),
    ],
)
def test_an_audit_that_cannot_work_is_refused(order: tuple[Any, Any, Any], field: str) -> None:
    """One sentence names the field."""
    with pytest.raises(Exception, match=rf"^{field}: ") as refused:
        check_order(*order)
    assert type(refused.value).__name__ == "ConfigurationError"


# --- every connection in use ---


async def test_every_connection_that_a_rotation_or_a_ledger_names_is_audited(life: Life) -> None:
    """Also the one that a rotation has left while keys of it are alive; nobody has to remember it."""
    await life.rotate()
    life.connections.add("other")
    life.deployed = life.rotation.model_copy(update={"connection": "other"})

    in_use = await connections_in_use(life)
    reports, failures = await audit_each(life, in_use, timedelta(days=90), None)

    assert in_use == ["openrouter", "other"]
    assert [report.connection for report in reports] == in_use
    assert failures == []


async def test_an_audit_that_fails_does_not_stop_the_others(life: Life) -> None:
    """The message names what was not audited, after what was."""
    await life.rotate()

    reports, failures = await audit_each(life, ["gone", "openrouter"], timedelta(days=90), None)

    assert [report.connection for report in reports] == ["openrouter"]
    said = as_summary(reports, failures)
    assert said.startswith("openrouter: 1 key checked")
    assert "Not audited: connection: the block openrouter-credentials/gone does not exist" in said
    assert said.endswith("if that is impossible, write them off with write-off-key. Nothing was changed.")


def test_a_summary_begins_with_what_requires_action() -> None:
    """However many connections are in order."""
    fine = Report("fine", Life().time, None, ())
    bad = Report("bad", Life().time, None, (Finding(Kind.MANAGEMENT_KEY_REFUSED, "It is refused."),))

    assert as_summary([fine, bad], []).startswith("bad: Action required: 1 finding.")
    assert as_summary([], []) == "No rotation uses a connection, so there is nothing to audit."


# --- large accounts ---


async def test_ten_thousand_keys_cost_one_pass_of_the_list(life: Life) -> None:
    """Every key is listed once, a hundred to a page, and nothing else grows with the account."""
    await life.rotate()
    life.openrouter.seed_keys(9_999)
    life.app.state.requests.clear()

    report = await life.audit()

    paths = [path for _, path, *_ in life.app.state.requests]
    assert report.counts is not None
    assert report.counts.seen == 10_000
    assert sum(path.endswith("/keys") for path in paths) <= 101
    assert sum(path.endswith("/workspaces") for path in paths) == 1
    # The lists of keys, and the workspace's logging.
    assert len(paths) <= 103 + 3
    assert len(report.findings) == MOST_KEPT + 1
    assert "9899 more keys" in report.findings[-1].sentence


async def test_keys_of_another_server_are_listed_up_to_a_number(life: Life) -> None:
    """A thousand keys of another Prefect server cost some findings, some events and a few questions to Prefect."""
    await life.rotate()
    for _ in range(1_000):
        marked(life, uuid4())
    life.later(hours=2)
    events_before = len(life.events)
    life.runs_asked_for.clear()

    report = await life.audit()

    assert found(report) == {Kind.MARKED_NOT_OURS}
    assert len(report.findings) == MOST_KEPT + 1
    assert "900 more keys" in " ".join(finding.sentence for finding in report.findings)
    assert len(life.events) - events_before == MOST_KEPT + 1
    assert life.runs_asked_for == [RUNS_AT_ONCE] * 5


async def test_the_table_says_how_many_findings_it_does_not_show() -> None:
    """An artifact stays readable, and nobody takes a part of it for the whole."""
    findings = tuple(Finding(Kind.ORPHAN, f"Number {number}.") for number in range(MAX_ROWS + 7))

    rows = as_table(Report("openrouter", Life().time, None, findings))

    assert len(rows) == MAX_ROWS + 1
    assert rows[-1]["details"] == "7 more findings are not shown."


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


class Place:
    """A destination that counts how many are open."""

    def __init__(self, world: ManyPlaces) -> None:
        self.world = world

    def place(self) -> str:
        """Name it."""
        return "a place"

    async def read_content(self) -> Content:
        """Read it."""
        return Content(SecretStr("a key"))


class ManyPlaces(Life):
    """A world with many rotations, each with a destination of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.is_open = 0
        self.most_open = 0
        self.is_deployed = False
        for number in range(count):
            store = self.other_stores.setdefault(f"rotation-{number}", Memory())
            entry = Current(
                hash=f"{number:064d}",
                label="sk-or-v1-the...key",
                fingerprint=fingerprint(SecretStr("a key")) or "",
                connection="openrouter",
                since=self.time,
                destinations=(f"secret/number-{number}",),
            )
            store.value = Ledger(current=entry).to_json()

    async def destination(self, name: str) -> Any:
        """Open one."""
        self.is_open += 1
        self.most_open = max(self.most_open, self.is_open)
        return Place(self)

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[ManyPlaces]:
        """Close what was opened."""
        yield self
        self.is_open = 0


async def test_only_some_destinations_are_open_at_once() -> None:
    """An audit of hundreds of rotations needs no more sockets and logins than one of a few."""
    life = ManyPlaces(100)
    life.client = cast("OpenRouterClient", LongAccount([]))

    await life.audit()

    assert life.most_open == OPEN_AT_ONCE
    assert life.is_open == 0


class LongAccount:
    """A connection to an account with keys that are made when they are asked for, and held by nobody here."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self.keys = keys

    async def about_itself(self) -> CurrentKey:
        """The management key."""
        return CurrentKey(label="management key")

    async def list_workspaces(self) -> AsyncIterator[str]:
        """The one workspace."""
        yield "default"

    async def list_keys(self, _workspace_id: str) -> AsyncIterator[ApiKey]:
        """The keys."""
        for key in self.keys:
            yield key

    async def key_lists(self, _kind: ListKind, _workspace_id: str) -> AsyncIterator[KeyList]:
        """No list names keys."""
        for nothing in list[KeyList]():
            yield nothing

    async def get_key(self, _key_hash: str) -> ApiKey:
        """No key is there."""
        raise NotFoundError("There is no such key.")


def keys_of_an_account(count: int) -> Iterator[ApiKey]:
    """Many keys, one at a time: of nobody, and every second one of another Prefect server."""
    shown = OpenRouterSandbox()
    shown.seed_keys(1)
    key = shown.show(next(iter(shown.keys.values())))
    for number in range(count):
        name = f"{marker('checkout', uuid4())} elsewhere" if number % 2 else "by hand"
        yield ApiKey.model_validate({**key, "hash": f"{number:064d}", "name": name})


async def peak(count: int) -> int:
    """The most memory that an audit of so many keys takes, in bytes."""
    life = Life()
    life.client = cast("OpenRouterClient", LongAccount(keys_of_an_account(count)))
    life.later(days=365)
    tracemalloc.start()
    report = await life.audit()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counts is not None
    assert report.counts.seen == count
    assert len(report.findings) == 2 * (MOST_KEPT + 1)
    return most


async def test_memory_does_not_grow_with_the_account() -> None:
    """Ten times as many keys, half of them with markers of another server, take about as much memory."""
    await peak(1_000)  # what is made once and kept

    few, many = await peak(1_000), await peak(10_000)

    assert many < 1.5 * few
