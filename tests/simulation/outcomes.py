"""The promises of a successful run: for each capability, a check that compares the world before and after the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.audit.findings import Finding, Kind
from tasks.audit.unrecorded import MAY_STILL_RUN_FOR
from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.keys import read_marker
from tasks.model.ledger import TURNS_UP_WITHIN, Ledger
from tasks.model.records import Current, Superseded
from tasks.model.rotation import Rotation
from tasks.model.terms import Terms
from tests.simulation.promises import promise
from tests.simulation.world.keys import ModelKey
from tests.simulation.world.model import Model

NAME = "checkout"
MOST_TAKEN_UP = 6
"""The number of keys that always fit into a ledger, however much is recorded about each."""


@dataclass(frozen=True)
class Before:
    """The world before a run."""

    time: datetime
    ledger: Ledger
    keys: dict[str, ModelKey]
    held: dict[str, str | None]
    events: int

    @classmethod
    def of(cls, model: Model) -> Before:
        """Record the present state of the world."""
        keys = {key.hash: copy(key) for key in model.keys.values()}
        held = {name: place.content for name, place in model.places.items()}
        return cls(model.time, model.ledger(NAME) or Ledger(), keys, held, len(model.events))

    def emitted_since(self, model: Model, event: Event, key_hash: str | None = None) -> bool:
        """Return whether the run has emitted an event, about this key if one is given."""
        return any(
            one["event"] == event.value and key_hash in (None, one.get("key_hash"))
            for one in model.events[self.events :]
        )

    def inheritable(self, rotation: Rotation, account: str) -> tuple[set[bool], set[str | None]]:
        """Return the values of `include_byok_in_limit`, and the guardrails, that a new key may inherit."""
        current = self.ledger.current
        if not rotation.key.inherit:
            return {False}, {None}
        held = {self.held[name] for name in rotation.destinations}
        formers = [key for key in self.keys.values() if key.secret in held]
        counted, guardrails = {key.request.include_byok_in_limit for key in formers}, {key.guardrail for key in formers}
        if current is None:
            # Without a current key in the ledger, a run inherits from the key that a destination holds, if it finds it.
            return {False, *counted}, {None, *guardrails}
        if formers and len(formers) == len(held) and not self.ledger.hashes() & {key.hash for key in formers}:
            # So it does if the ledger is out of date.
            return counted, guardrails
        terms, former = current.terms or Terms(), self.keys.get(current.hash)
        if former is None or former.account != account:
            # The key cannot be read, so a run inherits the settings that the ledger stores.
            counted = {former.request.include_byok_in_limit} if former else set()
            return {terms.include_byok_in_limit, *counted}, {None, terms.guardrail_id}
        return {former.request.include_byok_in_limit}, {former.guardrail}

    def is_young(self, rotation: Rotation, run: Identity) -> bool:
        """Return whether a scheduled run has nothing to do, because the current key is young, published and working."""
        current = self.ledger.current
        if run.scheduled_for is None or run.emergency or current is None or self.ledger.pending is not None:
            return False
        key = self.keys.get(current.hash)
        published = key is not None and {self.held[name] for name in rotation.destinations} == {key.secret}
        works = key is not None and key.works(self.time)
        youngest = min(self.time - rotation.minimum_age, run.scheduled_for)
        # The model has no interval, but overlap and margin.
        end, late = key.request.expires_at if key else None, current.since > run.scheduled_for
        lasts = late or end is None or end >= self.time + rotation.time_to_replace(timedelta(0))
        return published and works and lasts and self.time >= current.since > youngest


def _current(model: Model) -> Current | None:
    ledger = model.ledger(NAME)
    return ledger.current if ledger else None


def check_turn(model: Model, rotation: Rotation, run: Identity, before: Before) -> None:
    """A new run makes a new key, unless it is scheduled and the current key is young and in order."""
    current = _current(model)
    if before.is_young(rotation, run):
        promise(current == before.ledger.current, "a scheduled run replaced a key younger than the minimum age")
    else:
        promise(current is not None and current.rotated_by == run.id, "a run succeeded that was no rotation")


def check_new_key(model: Model, rotation: Rotation, before: Before) -> None:
    """A new key has the rotation's settings, and those that it inherits."""
    current = _current(model)
    if current is None or current.hash in before.keys:
        return
    key, asked = model.keys[current.hash], rotation.key
    promise(asked.name in key.request.name, "a key was published without its whole name")
    if current.budget is None:
        promise(key.request.limit == asked.limit_usd, "a new key has another limit")
    promise(key.request.limit_reset == asked.terms(model.time).limit_reset, "a new key's limit is reset otherwise")
    for_all, guardrails = before.inheritable(rotation, key.account)
    counted = {True} if asked.include_byok_in_limit else for_all
    promise(key.request.include_byok_in_limit in counted, "a new key counts other spending")
    guarded = {asked.guardrail_id} if asked.guardrail_id else guardrails
    promise(key.guardrail in guarded, "a new key has another guardrail")
    _check_end(model, rotation, before, key)


def _check_end(model: Model, rotation: Rotation, before: Before, key: ModelKey) -> None:
    lives, end = rotation.key.expires_after, key.request.expires_at
    if lives is None or end is None:
        promise(lives is None and end is None, "a new key ends otherwise than it should")
        return
    second = timedelta(seconds=1)
    promise(before.time + lives - second <= end <= model.time + lives, "a new key ends at another time")


def check_adopted(model: Model, rotation: Rotation, before: Before, *, at_once: bool) -> None:
    """The first rotation supersedes a key to adopt, with the usual overlap."""
    key = before.keys.get(rotation.adopt or "")
    if key is None or before.ledger.current is not None or before.ledger.pending is not None:
        return
    if key.hash in before.ledger.hashes():
        # It was adopted before the rotation was removed, and the removal has set its end.
        return
    if key.account != model.connections[rotation.connection]:
        return
    ledger = model.ledger(NAME) or Ledger()
    entry = next((former for former in ledger.superseded if former.hash == key.hash), None)
    if at_once or not rotation.overlap:
        promise(key.hash not in model.keys or entry is not None, "a key was not adopted")
        return
    promise(entry is not None, "a key was not adopted, or got no overlap")
    ends = entry.since + rotation.overlap if entry and entry.since else None
    promise(entry is None or entry.overlap_ends == ends, "an adopted key got another overlap")


def check_told(model: Model, before: Before, rotation: Rotation) -> None:
    """A rotation emits an event for each state of the new key, and one when it is done."""
    current = _current(model)
    if current is None or current == before.ledger.current:
        return
    promise(
        before.emitted_since(model, Event.ROTATION_COMPLETED, current.hash), "a rotation told nobody that it is done"
    )
    if current.hash in before.keys:
        return
    for event in (Event.KEY_CREATED, Event.KEY_VERIFIED, Event.KEY_PUBLISHED):
        promise(before.emitted_since(model, event, current.hash), f"nobody was told: {event.meaning}")
    published = [e for e in model.events[before.events :] if e["event"] == Event.KEY_PUBLISHED.value]
    promise({e["destination"] for e in published} == {*rotation.destinations}, "a publish was not told")


def check_ends_told(model: Model, before: Before) -> None:
    """An event reports each superseded key that was revoked or disabled."""
    after = {key.hash: key for key in (model.ledger(NAME) or Ledger()).superseded}
    for key in before.ledger.superseded:
        if key.hash in before.keys and key.hash not in model.keys:
            promise(before.emitted_since(model, Event.KEY_REVOKED, key.hash), "nobody was told of a revocation")
        elif not key.disabled and key.hash in after and after[key.hash].disabled:
            promise(before.emitted_since(model, Event.KEY_DISABLED, key.hash), "nobody was told of a disabled key")


def check_scheduled(model: Model) -> None:
    """Every later action on older keys is scheduled, and no wait exceeds the longest overlap."""
    ledger = model.ledger(NAME) or Ledger()
    due_times = [key.revoke_at for key in ledger.superseded] + [e.since + TURNS_UP_WITHIN for e in ledger.unresolved]
    if ledger.current and ledger.current.budget and ledger.current.budget.ends_at:
        due_times.append(ledger.current.budget.ends_at)
    if ledger.late_writes_until:
        due_times.append(ledger.late_writes_until)
    due_times += [key.late_until for key in ledger.superseded if key.capped is False and key.late_until]
    # Count cancelled retirements, too, because a run does not schedule the same time again.
    missing = {(NAME, at) for at in due_times if at > model.time} - set(model.retirements)
    promise(not missing, f"nobody will come for what ends at {missing}")
    policy = ledger.retirement
    for key in ledger.superseded:
        overlap_ends = key.overlap_ends or key.revoke_at
        last_call = max((key.since or overlap_ends) + policy.max_overlap, overlap_ends)
        if policy.retire_when == "unused" and key.postponed and not key.disabled:
            promise(key.revoke_at <= last_call, "a revocation waits longer than the longest overlap")


def check_looks_again(model: Model, before: Before) -> None:
    """After an emergency, the destinations are read again once no write of a key that it ended can come any more."""
    ledger, pending = before.ledger, before.ledger.pending
    late = [key.late_until for key in (ledger.current, *ledger.superseded) if key and key.late_until]
    late += [before.time + pending.late_writes] if pending and pending.key and pending.late_writes else []
    until = max([moment for moment in late if moment > model.time], default=None)
    again = (model.ledger(NAME) or Ledger()).late_writes_until
    promise(until is None or (again is not None and again >= until), f"nobody looks for what arrives until {until}")


def check_budget(model: Model, before: Before) -> None:
    """Once the period of a carried budget has ended, the key has its full limit again."""
    current = _current(model)
    if current is None:
        return
    promise(current.budget is None or current.budget.runs(model.time), "an ended budget is still counted")
    former = before.ledger.current
    if former and former.hash == current.hash and former.budget and current.budget is None and current.terms:
        key = model.keys.get(current.hash)
        promise(key is None or key.request.limit == current.terms.limit, "the full limit did not come back")


def check_applied(model: Model, rotation: Rotation, before: Before) -> None:
    """After apply-settings, the current key has the rotation's settings; those left open may be inherited."""
    current = _current(model)
    key = model.keys.get(current.hash) if current else None
    former = before.keys.get(current.hash) if current else None
    if current is None or key is None or former is None:
        return
    asked, inherits = rotation.key, rotation.key.inherit
    if current.budget is None:
        promise(key.request.limit == asked.limit_usd, "apply-settings did not apply the limit")
    reset = asked.terms(model.time).limit_reset
    promise(key.request.limit_reset == reset, "apply-settings did not apply the reset")
    byok = asked.include_byok_in_limit or (inherits and former.request.include_byok_in_limit)
    promise(key.request.include_byok_in_limit == byok, "apply-settings did not apply which spending counts")
    guardrail = asked.guardrail_id or (former.guardrail if inherits else None)
    promise(key.guardrail == guardrail, "apply-settings did not apply the guardrail")
    promise(before.emitted_since(model, Event.SETTINGS_APPLIED, current.hash), "nobody was told of applied settings")


def check_removed(model: Model, before: Before, keys: str, until: datetime | None) -> None:
    """A removed rotation has no deployment, and its keys end as chosen."""
    promise(NAME not in model.deployments, "the deployment of a removed rotation is there")
    ledger, current = model.ledger(NAME), before.ledger.current
    alive = current is not None and current.hash in before.keys
    if keys == "revoke":
        promise(not before.ledger.hashes() & set(model.keys), "a key of a removed rotation is alive")
        promise(ledger is None or bool(ledger.unresolved), "the ledger of a removed rotation is there")
    elif current and alive:
        key = model.keys.get(current.hash)
        promise(key is not None, "a kept key died")
        if keys == "keep" and key:
            promise(read_marker(key.request.name) is None, "a key that is kept for good carries a marker")
        ends = {former.hash: former.revoke_at for former in ledger.superseded} if ledger else {}
        if keys == "keep-until":
            promise(ends.get(current.hash) == until, "a key that was kept for a while has no such end")
    if ledger is None:
        promise(before.emitted_since(model, Event.ROTATION_REMOVED), "nobody was told that a rotation was removed")


def check_written_off(model: Model, before: Before, key: Superseded) -> None:
    """Only a key that nobody can revoke is written off, and an event says so."""
    account = model.connections[key.connection]
    there = key.hash in model.keys and model.keys[key.hash].account == account
    closed = account in model.revoked_accounts or key.connection in model.deleted_connections
    promise(closed or not there, "a key was written off that could be revoked")
    ledger = model.ledger(NAME)
    promise(ledger is None or key.hash not in ledger.hashes(), "a key that was written off is in the ledger")
    promise(ledger is None or ledger.written_off[-1].hash == key.hash, "the ledger does not say what was written off")
    promise(
        before.emitted_since(model, Event.KEY_WRITTEN_OFF, key.hash), "nobody was told of a key that was written off"
    )


def check_findings(model: Model, connection: str, findings: Sequence[Finding], told: int) -> None:
    """An audit that could read everything finds every orphan, and every fault of the current key."""
    found = {(finding.kind, finding.key_hash) for finding in findings}
    ledger, account = model.ledger(NAME), model.connections[connection]
    if ledger is not None:
        for orphan in orphans(model, ledger, account):
            named = {(Kind.ORPHAN, orphan), (Kind.HELD_KEY_UNRECORDED, orphan)} & found
            promise(bool(named), f"an audit did not find the orphan {orphan}")
    current = ledger.current if ledger and not ledger.removed else None
    if ledger and current and current.connection == connection and current.workspace_id == f"default-of-{account}":
        key = model.keys.get(current.hash)
        dead = key is None or key.disabled or key.expired(model.time)
        promise(not dead or (Kind.CURRENT_KEY_UNUSABLE, current.hash) in found, "an audit did not find a dead key")
        places = [model.places[name] for name in current.destinations]
        strange = key and not ledger.pending and any(place.exists and place.content != key.secret for place in places)
        named = {(Kind.DESTINATION_DIFFERS, current.hash), (Kind.DESTINATION_MOVED, current.hash)} & found
        promise(not strange or bool(named), "an audit did not see a destination")
    about = (Event.ORPHAN_FOUND.value, Event.AUDIT_FINDING.value)
    promise(sum(e["event"] in about for e in model.events[told:]) == len(findings), "findings were not told")


def orphans(model: Model, ledger: Ledger, account: str) -> Collection[str]:
    """Return the keys in an account that an audit must report as orphans."""
    old = [k for k in model.keys.values() if k.account == account and model.time - k.created_at > MAY_STILL_RUN_FOR]
    return {key.hash for key in old if is_ours(model, key)} - ledger.hashes()


def is_ours(model: Model, key: ModelKey) -> bool:
    """Return whether a key's marker shows that the rotation made it in this installation."""
    mark = read_marker(key.request.name)
    if mark is None or mark.rotation != NAME:
        return False
    return mark.installation == model.installation if mark.installation else mark.run_id in model.runs


def in_sight(model: Model, rotation: Rotation, made: Mapping[str, str]) -> set[str]:
    """Return the keys that a rotation finds by their markers, if a destination holds a key unknown to the ledger."""
    ledger = model.ledger(NAME) or Ledger()
    held = [made.get(model.places[name].content or "") for name in rotation.destinations]
    adopts = rotation.adopt is not None and ledger.current is None
    if adopts or not any(key and key not in ledger.hashes() for key in held):
        return set()
    account = model.connections[rotation.connection]
    ours = {key.hash for key in model.keys.values() if key.account == account and is_ours(model, key)}
    # If they do not fit into the ledger, only an audit can deal with them.
    return ours if len(ours | ledger.hashes()) <= MOST_TAKEN_UP else set()
