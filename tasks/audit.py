"""An audit compares what OpenRouter has with what the ledgers say: pure comparison, no input and no output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Self
from uuid import UUID

from blocks.errors import LedgerError
from blocks.openrouter import ApiKey
from tasks.keys import moment, read_marker
from tasks.ledger import Current, Ledger, MadeKey, Superseded, parse_ledger
from tasks.run import Deployed

SETTLED_AFTER = timedelta(hours=1)
"""How long a run may be at work, or late; until then nothing counts as left behind."""
EXPIRES_WITHIN = timedelta(days=7)
"""How far ahead of its end a key is told of."""
MANAGEMENT_KEY_EXPIRES_WITHIN = timedelta(days=14)
"""How far ahead of its end a management key is told of: only a person can make a new one."""
LONGEST_MARGIN = timedelta(days=1)
"""How late a rotation may be at most before it is overdue; one with a shorter interval may be late by one interval."""
MOST_KEPT = 100
"""How many findings of a kind of which there may be one for each key are kept; the others are counted."""


class Severity(Enum):
    """How much a finding matters; the value is its rank, the gravest first."""

    CRITICAL = 0
    WARNING = 1
    NOTICE = 2


class Kind(StrEnum):
    """What an audit can find; the value is its name in the artifact and in events."""

    severity: Severity
    advice: str

    def __new__(cls, name: str, severity: Severity, advice: str) -> Self:
        """Make a kind of its name, its usual severity, and what a person does about it."""
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.severity = severity
        kind.advice = advice
        return kind

    MANAGEMENT_KEY_REFUSED = (
        "management-key-refused",
        Severity.CRITICAL,
        "Put a valid management key into the connection's block.",
    )
    MANAGEMENT_KEY_EXPIRING = (
        "management-key-expiring",
        Severity.WARNING,
        "Make a new management key of the same account and put it into the connection's block.",
    )
    OTHER_ACCOUNT = (
        "other-account",
        Severity.CRITICAL,
        "Put a management key of the former account back, so that its keys can be revoked.",
    )
    LEDGER_UNREADABLE = (
        "ledger-unreadable",
        Severity.CRITICAL,
        "Put an earlier value of the variable back from its events.",
    )
    LEDGER_LOST = (
        "ledger-lost",
        Severity.CRITICAL,
        "Audit with repair, or run the rotation: it finds its keys again and replaces them.",
    )
    CURRENT_KEY_UNUSABLE = ("current-key-unusable", Severity.CRITICAL, "Run the rotation at once.")
    DESTINATION_DIFFERS = (
        "destination-differs",
        Severity.CRITICAL,
        "Find out who wrote it, then run the rotation: it publishes a new key there.",
    )
    DESTINATION_UNREADABLE = ("destination-unreadable", Severity.WARNING, "Mend the destination or its block.")
    ROTATION_OVERDUE = (
        "rotation-overdue",
        Severity.WARNING,
        "Look at the deployment's last runs and at its worker, then run the rotation.",
    )
    KEY_EXPIRING = ("key-expiring", Severity.WARNING, "Run the rotation before that.")
    PENDING = (
        "rotation-unfinished",
        Severity.WARNING,
        "Retry the failed run, or start a new one: both finish or clean up what is pending.",
    )
    UNRESOLVED = (
        "create-unresolved",
        Severity.WARNING,
        "Run retire for the rotation: it looks for the key and deletes it.",
    )
    SUPERSEDED_KEY_OVERDUE = (
        "superseded-key-overdue",
        Severity.WARNING,
        "Run retire for the rotation; its state says what stands in the way.",
    )
    SUPERSEDED_KEY_DIFFERS = (
        "superseded-key-differs",
        Severity.WARNING,
        "Find out who changed it; consumers that still use it may fail.",
    )
    WITHOUT_DEPLOYMENT = (
        "no-deployment",
        Severity.WARNING,
        "Deploy the rotation again; to take it away for good, run remove-rotation after that.",
    )
    ORPHAN = (
        "orphan",
        Severity.WARNING,
        "Audit with repair, or delete it at OpenRouter once you are sure that nobody uses it.",
    )
    MARKED_NOT_OURS = (
        "marked-not-ours",
        Severity.NOTICE,
        "Nothing, where another Prefect server rotates keys of this account; otherwise find out who made it.",
    )
    OF_NOBODY = ("key-of-no-rotation", Severity.NOTICE, "Put it under rotation (adopt), limit it, or delete it.")
    IN_CHANGE = ("rotation-in-change", Severity.NOTICE, "Nothing; the next audit looks again.")


@dataclass(frozen=True)
class AuditFinding:
    """Something that an audit has found.

    Args:
        kind: What it is.
        sentence: What was found, for a person.
        rotation: The rotation's name, where it is about one.
        key_label: The key's label, where it is about one.
        key_hash: The key's hash, where it is about one.
        graded: How much it matters, where that is not as usual for its kind.
        repaired: Whether this audit has put it right.
    """

    kind: Kind
    sentence: str
    rotation: str = ""
    key_label: str = ""
    key_hash: str = ""
    graded: Severity | None = None
    repaired: bool = False

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return self.graded or self.kind.severity

    @property
    def needs_person(self) -> bool:
        """Whether somebody has to do something."""
        return self.severity is not Severity.NOTICE and not self.repaired


@dataclass
class Counts:
    """How many keys an audit has seen, by whose they are.

    Args:
        seen: All.
        of_rotations: Those that a ledger explains.
        unexplained: Those with a marker that no ledger explains: orphans, those of other servers, and new ones.
        of_nobody: Those without a marker that no ledger explains.
    """

    seen: int = 0
    of_rotations: int = 0
    unexplained: int = 0
    of_nobody: int = 0


class LedgerSet:
    """All ledgers at one moment.

    Args:
        values: The value of each ledger's variable, by the rotation's name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.ledgers: dict[str, Ledger] = {}
        self.damaged: dict[str, str] = {}
        for name, value in values.items():
            try:
                self.ledgers[name] = parse_ledger(name, value)
            except LedgerError as error:
                self.damaged[name] = str(error)

    def hashes(self) -> set[str]:
        """Collect the hashes of all keys that the ledgers explain."""
        return {key_hash for ledger in self.ledgers.values() for key_hash in ledger.hashes()}


class Capped:
    """Findings of one kind: the first ones, and how many more there are, so that memory does not grow.

    Args:
        kind: The kind.
        more: What the others are, as it reads after their number.
    """

    def __init__(self, kind: Kind, more: str) -> None:
        self._kind = kind
        self._more = more
        self._kept: list[AuditFinding] = []
        self._left_out = 0

    def add(self, finding: AuditFinding | None) -> None:
        """Keep a finding, where there is one and room for it, or else count it.

        Args:
            finding: The finding; `None` for nothing.
        """
        if finding is None:
            return
        if len(self._kept) < MOST_KEPT:
            self._kept.append(finding)
        else:
            self._left_out += 1

    def findings(self) -> list[AuditFinding]:
        """List what was kept.

        Returns:
            The findings, and one that counts those for which there was no room.
        """
        if not self._left_out:
            return self._kept
        return [*self._kept, AuditFinding(self._kind, f"{self._left_out} more {self._more}; they are not listed.")]


class KeyFilter:
    """Takes the keys of an account one at a time, and keeps only those that matter to the audit.

    Args:
        ledgers: All ledgers.
        older_than: How old a key of no rotation may become.
        now: The current moment, UTC.
    """

    def __init__(self, ledgers: LedgerSet, older_than: timedelta, now: datetime) -> None:
        self._hashes = ledgers.hashes()
        self._damaged = ledgers.damaged
        self._older_than = older_than
        self._now = now
        self._of_nobody = Capped(Kind.OF_NOBODY, "keys of no rotation are like those above")
        self._not_ours = Capped(Kind.MARKED_NOT_OURS, "keys were made by runs that this Prefect server does not know")
        self.counts = Counts()
        self.explained: dict[str, ApiKey] = {}
        self.undecided: list[ApiKey] = []
        """Keys with a marker that no ledger explains, until `decide` is told which runs this Prefect server knows."""
        self.ours: dict[str, ApiKey] = {}

    def take(self, key: ApiKey) -> None:
        """Look at one key.

        Args:
            key: The key, as a list shows it.
        """
        self.counts.seen += 1
        if key.hash in self._hashes:
            self.counts.of_rotations += 1
            self.explained[key.hash] = key
        elif read_marker(key.name):
            self.counts.unexplained += 1
            self.undecided.append(key)
        else:
            self.counts.of_nobody += 1
            self._of_nobody.add(judge_key_of_nobody(key, self._older_than, self._now))

    def runs(self) -> set[UUID]:
        """Say which runs have made the undecided keys."""
        return {mark[1] for key in self.undecided if (mark := read_marker(key.name))}

    def decide(self, known: Collection[UUID]) -> None:
        """Keep the undecided keys that runs of this Prefect server have made, and tell of the others.

        Args:
            known: The runs that this server knows.
        """
        for key in self.undecided:
            mark = read_marker(key.name)
            if mark and mark[1] in known:
                self.ours[key.hash] = key
            else:
                self._not_ours.add(judge_key_not_ours(key, self._damaged, self._now))
        self.undecided.clear()

    def findings(self) -> list[AuditFinding]:
        """Tell what was found about keys of no rotation and of other Prefect servers.

        Returns:
            The findings, some of each kind.
        """
        return [*self._not_ours.findings(), *self._of_nobody.findings()]


def judge_key_of_nobody(key: ApiKey, older_than: timedelta, now: datetime) -> AuditFinding | None:
    """Say what is wrong with a key of no rotation.

    Args:
        key: The key.
        older_than: How old it may become.
        now: The current moment, UTC.

    Returns:
        The finding; `None` for one that is in order, or that cannot be used any more.
    """
    if not is_live(key, now):
        return None
    faults = []
    if now - key.created_at > older_than:
        faults.append(f"is {(now - key.created_at).days} days old")
    if key.limit is None:
        faults.append("has no spending limit")
    if key.expires_at and key.expires_at - now <= EXPIRES_WITHIN:
        faults.append(f"expires at {moment(key.expires_at)}")
    if not faults:
        return None
    sentence = f"The key {key.label} belongs to no rotation and {' and '.join(faults)}."
    return AuditFinding(Kind.OF_NOBODY, sentence, key_label=key.label, key_hash=key.hash)


def is_live(key: ApiKey, now: datetime) -> bool:
    """Say whether a key can be used.

    Args:
        key: The key.
        now: The current moment, UTC.

    Returns:
        Whether it is neither disabled nor expired.
    """
    return not key.disabled and (key.expires_at is None or key.expires_at > now)


def judge_management_key(connection: str, expires_at: datetime | None, now: datetime) -> list[AuditFinding]:
    """Say whether the management key is about to end.

    Args:
        connection: The connection's name.
        expires_at: When its management key ends; `None` for never, or where OpenRouter does not say.
        now: The current moment, UTC.

    Returns:
        At most one finding.
    """
    if expires_at is None or expires_at - now > MANAGEMENT_KEY_EXPIRES_WITHIN:
        return []
    sentence = f"The management key of the connection {connection} expires at {moment(expires_at)}."
    return [AuditFinding(Kind.MANAGEMENT_KEY_EXPIRING, sentence)]


@dataclass(frozen=True)
class Snapshot:
    """Everything that is known about one rotation at one moment.

    Args:
        name: The rotation's name.
        ledger: Its ledger.
        deployed: Its deployment, if it has one.
        keys: Its keys at OpenRouter by hash; `None` for one that is not there. Keys of other connections are left out.
        held: The fingerprint of what each destination holds.
        unreadable: Why a destination cannot be read.
    """

    name: str
    ledger: Ledger
    deployed: Deployed | None
    keys: Mapping[str, ApiKey | None] = field(default_factory=dict)
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)


def connection_of(ledger: Ledger, deployed: Deployed | None) -> str | None:
    """Say which connection a rotation belongs to.

    Args:
        ledger: Its ledger.
        deployed: Its deployment, if it has one.

    Returns:
        The connection of its newest key, or else the one that its deployment names; `None` where neither tells.
    """
    entries = (ledger.current, ledger.pending, *ledger.superseded, *ledger.unresolved)
    newest = next((entry.connection for entry in entries if entry), None)
    return newest or (deployed.rotation.connection if deployed and deployed.rotation else None)


def entries_of(ledger: Ledger, connection: str) -> list[MadeKey]:
    """List the keys that a rotation made over a connection.

    Args:
        ledger: The rotation's ledger.
        connection: The connection.

    Returns:
        The current, the pending and the superseded keys.
    """
    pending = ledger.pending.key if ledger.pending else None
    return [key for key in (ledger.current, pending, *ledger.superseded) if key and key.connection == connection]


def read_destinations_of(ledger: Ledger) -> tuple[str, ...]:
    """Say which destinations are to hold a rotation's current key.

    Args:
        ledger: The rotation's ledger.

    Returns:
        The destinations; none for a rotation that was taken away.
    """
    return ledger.current.destinations if ledger.current and not ledger.removed else ()


def judge_rotation(
    snapshot: Snapshot, connection: str, workspaces: Collection[str], now: datetime
) -> Iterator[AuditFinding]:
    """Compare a rotation's ledger with its keys, its destinations and its deployment.

    Args:
        snapshot: What is known about it.
        connection: The connection that is audited; keys of others are not judged.
        workspaces: The workspaces of its account.
        now: The current moment, UTC.

    Yields:
        What is wrong.
    """
    ledger = snapshot.ledger
    if connection_of(ledger, snapshot.deployed) in (connection, None):
        yield from _judge_ledger(snapshot, now)
        yield from _judge_destinations(snapshot, now)
    for entry in entries_of(ledger, connection):
        key = snapshot.keys.get(entry.hash)
        if key is None and entry.workspace_id is not None and entry.workspace_id not in workspaces:
            sentence = (
                f"The connection {connection} knows neither the key {entry.label} nor its workspace: it seems to "
                "belong to another account now."
            )
            yield _about(Kind.OTHER_ACCOUNT, snapshot, entry, sentence)
        elif isinstance(entry, Current):
            if not ledger.removed:
                yield from _judge_current(snapshot, entry, key, now)
        elif isinstance(entry, Superseded):
            yield from _judge_superseded(snapshot, entry, key, now)


def _judge_ledger(snapshot: Snapshot, now: datetime) -> Iterator[AuditFinding]:
    name, ledger = snapshot.name, snapshot.ledger
    if snapshot.deployed is None and not ledger.removed:
        sentence = f"The rotation {name} has a ledger but no deployment rotate/{name}, so nothing rotates it any more."
        yield AuditFinding(Kind.WITHOUT_DEPLOYMENT, sentence, name)
    if ledger.pending and now - ledger.pending.intended_at > SETTLED_AFTER:
        sentence = (
            f"Run {ledger.pending.run_id} has left the rotation {name} unfinished since "
            f"{moment(ledger.pending.intended_at)}."
        )
        yield AuditFinding(Kind.PENDING, sentence, name)
    for entry in ledger.unresolved:
        grave = None if now - entry.since > SETTLED_AFTER else Severity.NOTICE
        sentence = (
            f"Run {entry.run_id} of rotation {name} may have created a key at {moment(entry.since)} that has not "
            "turned up yet."
        )
        yield AuditFinding(Kind.UNRESOLVED, sentence, name, graded=grave)
    yield from _judge_age(snapshot, now)


def _judge_age(snapshot: Snapshot, now: datetime) -> Iterator[AuditFinding]:
    current, deployed = snapshot.ledger.current, snapshot.deployed
    if current is None or snapshot.ledger.removed or deployed is None or not deployed.interval:
        return
    minimum_age = deployed.rotation.minimum_age if deployed.rotation else timedelta(0)
    if now - current.since > deployed.interval + minimum_age + min(deployed.interval, LONGEST_MARGIN):
        sentence = (
            f"The current key {current.label} of rotation {snapshot.name} has been in use since "
            f"{moment(current.since)}, longer than its schedule allows ({deployed.interval})."
        )
        yield _about(Kind.ROTATION_OVERDUE, snapshot, current, sentence)


def _judge_destinations(snapshot: Snapshot, now: datetime) -> Iterator[AuditFinding]:
    current, pending = snapshot.ledger.current, snapshot.ledger.pending
    if current is None:
        return
    at_work = pending is not None and now - pending.intended_at <= SETTLED_AFTER
    expected = {current.fingerprint} | ({pending.key.fingerprint} if at_work and pending and pending.key else set())
    for name in read_destinations_of(snapshot.ledger):
        if name in snapshot.unreadable:
            sentence = f"The destination {name} cannot be read: {snapshot.unreadable[name]}"
            yield AuditFinding(Kind.DESTINATION_UNREADABLE, sentence, snapshot.name)
        elif snapshot.fingerprints.get(name) not in expected:
            what = "holds nothing" if snapshot.fingerprints.get(name) is None else "holds something else"
            sentence = f"The destination {name} {what}, not the current key {current.label} of {snapshot.name}."
            yield _about(Kind.DESTINATION_DIFFERS, snapshot, current, sentence)


def _judge_current(snapshot: Snapshot, entry: Current, key: ApiKey | None, now: datetime) -> Iterator[AuditFinding]:
    if key is None or not is_live(key, now):
        sentence = f"The current key {entry.label} of rotation {snapshot.name} {_why_dead(key)}."
        yield _about(Kind.CURRENT_KEY_UNUSABLE, snapshot, entry, sentence)
    elif key.expires_at and key.expires_at - now <= EXPIRES_WITHIN:
        interval = snapshot.deployed.interval if snapshot.deployed else None
        in_time = bool(interval) and entry.since + (interval or timedelta(0)) < key.expires_at
        sentence = f"The current key {entry.label} of rotation {snapshot.name} expires at {moment(key.expires_at)}."
        yield _about(Kind.KEY_EXPIRING, snapshot, entry, sentence, Severity.NOTICE if in_time else None)


def _judge_superseded(
    snapshot: Snapshot, entry: Superseded, key: ApiKey | None, now: datetime
) -> Iterator[AuditFinding]:
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
    if now - entry.revoke_at > SETTLED_AFTER:
        sentence = (
            f"The superseded key {entry.label} of rotation {snapshot.name} was to be revoked at "
            f"{moment(entry.revoke_at)} and still exists."
        )
        yield _about(Kind.SUPERSEDED_KEY_OVERDUE, snapshot, entry, sentence)


def _why_dead(key: ApiKey | None) -> str:
    if key is None:
        return "does not exist at OpenRouter any more"
    return "is disabled at OpenRouter" if key.disabled else "has expired"


def _about(
    kind: Kind, snapshot: Snapshot, entry: MadeKey, sentence: str, graded: Severity | None = None
) -> AuditFinding:
    return AuditFinding(kind, sentence, snapshot.name, entry.label, entry.hash, graded)


def unreadable_ledgers(ledgers: LedgerSet) -> Iterator[AuditFinding]:
    """Tell of ledgers that cannot be read.

    Args:
        ledgers: All ledgers.

    Yields:
        A finding for each; nothing else is said about its rotation.
    """
    for name, sentence in ledgers.damaged.items():
        yield AuditFinding(Kind.LEDGER_UNREADABLE, sentence, name)


def in_change(name: str) -> AuditFinding:
    """Say that a run was at work on a rotation, so that it could not be judged."""
    sentence = f"A run of rotation {name} was at work during the audit, so the rotation was not judged."
    return AuditFinding(Kind.IN_CHANGE, sentence, name)


@dataclass(frozen=True)
class Lost:
    """A rotation whose ledger is gone.

    Args:
        name: The rotation's name.
        keys: Its keys that were found by their markers.
    """

    name: str
    keys: tuple[ApiKey, ...]


def find_lost_ledgers(ours: Iterable[ApiKey], ledgers: LedgerSet, deployed: Collection[str]) -> list[Lost]:
    """Find rotations that are deployed and have keys, but no ledger.

    Args:
        ours: The keys that runs of this Prefect server have made and no ledger explains.
        ledgers: All ledgers.
        deployed: The rotations that have a deployment.

    Returns:
        The rotations, each with its keys.
    """
    keys: dict[str, list[ApiKey]] = {}
    for key in ours:
        name, _ = read_marker(key.name) or ("", None)
        if name in deployed and name not in ledgers.values:
            keys.setdefault(name, []).append(key)
    return [Lost(name, tuple(found)) for name, found in keys.items()]


def judge_lost(lost: Lost, now: datetime) -> list[AuditFinding]:
    """Tell of a lost ledger.

    Args:
        lost: The rotation.
        now: The current moment, UTC.

    Returns:
        At most one finding: a key that was just made says nothing yet.
    """
    if all(is_new(key, now) for key in lost.keys):
        return []
    labels = ", ".join(key.label for key in lost.keys[:MOST_KEPT])
    sentence = f"The ledger of rotation {lost.name} is gone; its keys at OpenRouter are {labels}."
    return [AuditFinding(Kind.LEDGER_LOST, sentence, lost.name)]


def is_new(key: ApiKey, now: datetime) -> bool:
    """Say whether a key may still be in the hands of the run that makes it."""
    return now - key.created_at <= SETTLED_AFTER


def judge_key_not_ours(key: ApiKey, damaged: Collection[str], now: datetime) -> AuditFinding | None:
    """Tell of a key that a run made which this Prefect server does not know.

    Args:
        key: The key.
        damaged: The rotations whose ledgers cannot be read.
        now: The current moment, UTC.

    Returns:
        The finding; `None` for a key that was just made, or whose ledger cannot be read.
    """
    name, run_id = read_marker(key.name) or ("", None)
    if is_new(key, now) or name in damaged:
        return None
    sentence = f"{_made(key, name, run_id)}, which this Prefect server does not know."
    return AuditFinding(Kind.MARKED_NOT_OURS, sentence, name, key.label, key.hash)


def judge_orphan(key: ApiKey, ledgers: LedgerSet, deployed: Collection[str], now: datetime) -> AuditFinding | None:
    """Tell of a key that a run of this Prefect server made, and that no ledger explains.

    Args:
        key: The key.
        ledgers: All ledgers.
        deployed: The rotations that have a deployment.
        now: The current moment, UTC.

    Returns:
        The finding; `None` for a key that was just made, whose ledger cannot be read, or whose ledger is lost.
    """
    name, run_id = read_marker(key.name) or ("", None)
    if is_new(key, now) or name in ledgers.damaged or (name in deployed and name not in ledgers.values):
        return None
    sentence = f"{_made(key, name, run_id)}, and no ledger explains it."
    return AuditFinding(Kind.ORPHAN, sentence, name, key.label, key.hash)


def _made(key: ApiKey, rotation: str, run_id: UUID | None) -> str:
    return f"The key {key.label} was made at {moment(key.created_at)} by run {run_id} of rotation {rotation}"
