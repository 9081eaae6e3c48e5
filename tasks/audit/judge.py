"""Pure assessments: what is wrong with a key, a ledger, a destination or a deployment."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from blocks.openrouter.keys import ApiKey
from tasks.audit.findings import Finding, Kind, Severity
from tasks.audit.ledgers import LedgerSet
from tasks.audit.unrecorded import MAY_STILL_RUN_FOR
from tasks.model.durations import show_duration
from tasks.model.former_places import left_behind
from tasks.model.ledger import Ledger
from tasks.model.places import is_same
from tasks.model.records import Current, MadeKey, Superseded
from tasks.model.times import show_time
from tasks.world.ports import Deployed

EXPIRES_WITHIN = timedelta(days=7)
"""How long before a key's expiry to warn."""
MANAGEMENT_KEY_EXPIRES_WITHIN = timedelta(days=14)
"""How long before a management key's expiry to warn; longer, because only a person can replace it."""
LONGEST_MARGIN = timedelta(days=1)
"""How late a rotation may be before it is overdue; if its interval is shorter, that interval."""


def judge_key_of_nobody(key: ApiKey, older_than: timedelta, now: datetime) -> Finding | None:
    """Assess a key without a rotation.

    Args:
        key: The key.
        older_than: Age from which it is reported.
        now: The current time, UTC.

    Returns:
        The finding; `None` if the key is in order, or no longer usable.
    """
    if not key.is_live(now):
        return None
    faults = []
    if now - key.created_at > older_than:
        faults.append(f"is {(now - key.created_at).days} days old")
    if key.limit is None:
        faults.append("has no spending limit")
    if key.expires_at and key.expires_at - now <= EXPIRES_WITHIN:
        faults.append(f"expires at {show_time(key.expires_at)}")
    if not faults:
        return None
    sentence = f"The key {key.label} belongs to no rotation and {' and '.join(faults)}."
    return Finding(Kind.UNMANAGED, sentence, key_label=key.label, key_hash=key.hash)


def judge_management_key(connection: str, expires_at: datetime | None, now: datetime) -> list[Finding]:
    """Report a management key that is about to expire.

    Args:
        connection: The connection's name.
        expires_at: When it expires; `None` if never, or if OpenRouter does not tell.
        now: The current time, UTC.

    Returns:
        At most one finding.
    """
    if expires_at is None or expires_at - now > MANAGEMENT_KEY_EXPIRES_WITHIN:
        return []
    sentence = f"The management key of the connection {connection} expires at {show_time(expires_at)}."
    return [Finding(Kind.MANAGEMENT_KEY_EXPIRING, sentence)]


@dataclass(frozen=True)
class Snapshot:
    """Everything known about a rotation at one time.

    Args:
        name: The rotation's name.
        ledger: Its ledger.
        deployed: Its deployment, if it has one.
        keys: Its keys at OpenRouter by hash; `None` for a missing one. Keys of other connections are left out.
        fingerprints: The fingerprint of each destination's content.
        unreadable: Why a destination cannot be read.
        places: Where each destination that was read points.
    """

    name: str
    ledger: Ledger
    deployed: Deployed | None
    keys: Mapping[str, ApiKey | None] = field(default_factory=dict)
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


def connection_of_rotation(ledger: Ledger, deployed: Deployed | None) -> str | None:
    """Return the connection that a rotation belongs to.

    Args:
        ledger: Its ledger.
        deployed: Its deployment, if it has one.

    Returns:
        The connection of its newest key, else the one in its deployment; `None` if neither is known.
    """
    newest = next((entry.connection for entry in ledger.entries()), None)
    return newest or (deployed.rotation.connection if deployed and deployed.rotation else None)


def keys_made_with(ledger: Ledger, connection: str) -> list[MadeKey]:
    """Return the current, pending and superseded keys of a rotation that were made with a connection."""
    return [key for key in ledger.made_keys() if key.connection == connection]


def read_destinations_of(ledger: Ledger) -> tuple[str, ...]:
    """Return the destinations that must hold a rotation's current key; none if it was removed."""
    return ledger.current.destinations if ledger.current and not ledger.removed else ()


def judge_rotation(
    snapshot: Snapshot, connection: str, workspaces: Collection[str], now: datetime
) -> Iterator[Finding]:
    """Compare a rotation's ledger with its keys, its destinations and its deployment.

    Args:
        snapshot: What is known about the rotation.
        connection: The audited connection; keys of other connections are not assessed.
        workspaces: The workspaces of its account.
        now: The current time, UTC.

    Yields:
        The findings.
    """
    ledger = snapshot.ledger
    if connection_of_rotation(ledger, snapshot.deployed) in (connection, None):
        yield from _judge_ledger(snapshot, now)
        yield from (Finding(Kind.FORMER_PLACE, sentence, snapshot.name) for sentence in left_behind(ledger))
        yield from _judge_destinations(snapshot, now)
    for entry in keys_made_with(ledger, connection):
        key = snapshot.keys.get(entry.hash)
        if key is None and entry.workspace_id is not None and entry.workspace_id not in workspaces:
            sentence = (
                f"The connection {connection} knows neither the key {entry.label} nor its workspace: the "
                "workspace was deleted, or the connection belongs to another account now."
            )
            yield _about(Kind.OTHER_ACCOUNT, snapshot, entry, sentence)
        elif isinstance(entry, Current):
            if not ledger.removed:
                yield from _judge_current(snapshot, entry, key, now)
        elif isinstance(entry, Superseded):
            yield from _judge_superseded(snapshot, entry, key, now)


def _judge_ledger(snapshot: Snapshot, now: datetime) -> Iterator[Finding]:
    name, ledger = snapshot.name, snapshot.ledger
    if snapshot.deployed is None and not ledger.removed:
        sentence = f"The rotation {name} has a ledger but no deployment rotate/{name}, so nothing rotates it any more."
        yield Finding(Kind.WITHOUT_DEPLOYMENT, sentence, name)
    if ledger.pending and now - ledger.pending.intended_at > MAY_STILL_RUN_FOR:
        sentence = (
            f"Run {ledger.pending.run_id} has left the rotation {name} unfinished since "
            f"{show_time(ledger.pending.intended_at)}."
        )
        yield Finding(Kind.PENDING, sentence, name)
    for entry in ledger.unresolved:
        grave = None if now - entry.since > MAY_STILL_RUN_FOR else Severity.NOTICE
        sentence = (
            f"Run {entry.run_id} of rotation {name} may have created a key at {show_time(entry.since)} that has not "
            "turned up yet."
        )
        yield Finding(Kind.UNRESOLVED, sentence, name, graded=grave)
    yield from _judge_age(snapshot, now)


def _judge_age(snapshot: Snapshot, now: datetime) -> Iterator[Finding]:
    current, deployed = snapshot.ledger.current, snapshot.deployed
    if current is None or snapshot.ledger.removed or deployed is None or not deployed.interval:
        return
    minimum_age = deployed.rotation.minimum_age if deployed.rotation else timedelta(0)
    if now - current.since > deployed.interval + minimum_age + min(deployed.interval, LONGEST_MARGIN):
        sentence = (
            f"The current key {current.label} of rotation {snapshot.name} has been in use since "
            f"{show_time(current.since)}, longer than its schedule allows ({show_duration(deployed.interval)})."
        )
        yield _about(Kind.ROTATION_OVERDUE, snapshot, current, sentence)


def _judge_destinations(snapshot: Snapshot, now: datetime) -> Iterator[Finding]:
    current, pending = snapshot.ledger.current, snapshot.ledger.pending
    if current is None:
        return
    at_work = pending is not None and now - pending.intended_at <= MAY_STILL_RUN_FOR
    expected = {current.fingerprint} | ({pending.key.fingerprint} if at_work and pending and pending.key else set())
    was = current.where()
    for name in read_destinations_of(snapshot.ledger):
        if was[name] and name in snapshot.places and not is_same(was[name], snapshot.places[name]):
            held = snapshot.fingerprints.get(name) in expected
            sentence = (
                f"The destination {name} points to {snapshot.places[name]} now; the former place {was[name]} may still "
                f"hold the current key {current.label} of {snapshot.name}, which the next rotation supersedes."
            )
            yield _about(Kind.DESTINATION_MOVED, snapshot, current, sentence, Severity.NOTICE if held else None)
        elif name in snapshot.unreadable:
            sentence = f"The destination {name} cannot be read: {snapshot.unreadable[name]}"
            yield Finding(Kind.DESTINATION_UNREADABLE, sentence, snapshot.name)
        elif snapshot.fingerprints.get(name) not in expected:
            what = "holds nothing" if snapshot.fingerprints.get(name) is None else "holds something else"
            sentence = f"The destination {name} {what}, not the current key {current.label} of {snapshot.name}."
            yield _about(Kind.DESTINATION_DIFFERS, snapshot, current, sentence)


def _judge_current(snapshot: Snapshot, entry: Current, key: ApiKey | None, now: datetime) -> Iterator[Finding]:
    if key is None or not key.is_live(now):
        sentence = f"The current key {entry.label} of rotation {snapshot.name} {_why_dead(key)}."
        yield _about(Kind.CURRENT_KEY_UNUSABLE, snapshot, entry, sentence)
    elif key.expires_at and key.expires_at - now <= EXPIRES_WITHIN:
        interval = snapshot.deployed.interval if snapshot.deployed else None
        in_time = bool(interval) and entry.since + (interval or timedelta(0)) < key.expires_at
        sentence = f"The current key {entry.label} of rotation {snapshot.name} expires at {show_time(key.expires_at)}."
        yield _about(Kind.KEY_EXPIRING, snapshot, entry, sentence, Severity.NOTICE if in_time else None)


def _judge_superseded(snapshot: Snapshot, entry: Superseded, key: ApiKey | None, now: datetime) -> Iterator[Finding]:
    if key is None and entry.revoking:
        return
    if key is None:
        sentence = f"The superseded key {entry.label} of rotation {snapshot.name} {_why_dead(key)}."
        yield _about(Kind.SUPERSEDED_KEY_DIFFERS, snapshot, entry, sentence)
        return
    expired = key.expires_at is not None and key.expires_at <= now
    if key.disabled != entry.disabled and not (expired or entry.revoking):
        state = "is disabled" if key.disabled else "is enabled"
        sentence = (
            f"The superseded key {entry.label} of rotation {snapshot.name} {state} at OpenRouter, though its ledger "
            "says otherwise."
        )
        yield _about(Kind.SUPERSEDED_KEY_DIFFERS, snapshot, entry, sentence)
    if expired:
        sentence = f"The superseded key {entry.label} of rotation {snapshot.name} {_why_dead(key)}."
        yield _about(Kind.SUPERSEDED_KEY_DIFFERS, snapshot, entry, sentence, Severity.NOTICE)
    if now - entry.revoke_at > MAY_STILL_RUN_FOR:
        sentence = (
            f"The superseded key {entry.label} of rotation {snapshot.name} was to be revoked at "
            f"{show_time(entry.revoke_at)} and still exists."
        )
        yield _about(Kind.SUPERSEDED_KEY_OVERDUE, snapshot, entry, sentence)


def _why_dead(key: ApiKey | None) -> str:
    if key is None:
        return "does not exist at OpenRouter any more"
    return "is disabled at OpenRouter" if key.disabled else "has expired"


def _about(kind: Kind, snapshot: Snapshot, entry: MadeKey, sentence: str, graded: Severity | None = None) -> Finding:
    return Finding(kind, sentence, snapshot.name, entry.label, entry.hash, graded)


def unreadable_ledgers(ledgers: LedgerSet) -> Iterator[Finding]:
    """Report ledgers that cannot be read; their rotations are not assessed otherwise."""
    for name, sentence in ledgers.damaged.items():
        yield Finding(Kind.LEDGER_UNREADABLE, sentence, name)


def in_change(name: str) -> Finding:
    """Report a rotation that could not be assessed because a run was changing it."""
    return Finding(Kind.IN_CHANGE, f"A run of rotation {name} was at work, so the rotation was not audited.", name)
