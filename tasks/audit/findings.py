"""What an audit can find, its severity, and the advice for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Self

MOST_KEPT = 100
"""How many findings are kept of a kind that can occur once per key; the others are only counted."""


class Severity(Enum):
    """The severity of a finding; the value is its rank, the most severe first."""

    CRITICAL = 0
    WARNING = 1
    NOTICE = 2


class Kind(StrEnum):
    """The kind of a finding; the value is its name in the artifact and in events."""

    severity: Severity
    advice: str

    def __new__(cls, name: str, severity: Severity, advice: str) -> Self:
        """Create a kind from its name, its usual severity, and the advice for it."""
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
        (
            "If the workspace was deleted, rotate into another one, and write its keys off with write-off-key. If the "
            "account is another one, put a management key of the former account back, so that its keys can be revoked."
        ),
    )
    LEDGER_UNREADABLE = (
        "ledger-unreadable",
        Severity.CRITICAL,
        "Upgrade this worker to the newest version in use, or undo the edit of the ledger's variable.",
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
    DESTINATION_MOVED = (
        "destination-moved",
        Severity.CRITICAL,
        "Run the rotation, which publishes there; move the consumers of the former place before the overlap ends.",
    )
    FORMER_PLACE = (
        "former-place",
        Severity.NOTICE,
        "Move the consumers that read the key there before it ends.",
    )
    DESTINATION_UNREADABLE = ("destination-unreadable", Severity.WARNING, "Fix the destination or its block.")
    ROTATION_OVERDUE = (
        "rotation-overdue",
        Severity.WARNING,
        "Look at the deployment's last runs and at its worker, then run the rotation.",
    )
    KEY_EXPIRING = ("key-expiring", Severity.WARNING, "Run the rotation before the key expires.")
    PENDING = (
        "rotation-unfinished",
        Severity.WARNING,
        "Retry the failed run, or start a new one: both finish or clean up what is pending.",
    )
    UNRESOLVED = (
        "create-unresolved",
        Severity.WARNING,
        "Run retire for the rotation: it looks for the key, and deletes it unless a destination holds it.",
    )
    SUPERSEDED_KEY_OVERDUE = (
        "superseded-key-overdue",
        Severity.WARNING,
        "Run retire for the rotation; the message of that run says what prevents the revocation.",
    )
    SUPERSEDED_KEY_DIFFERS = (
        "superseded-key-differs",
        Severity.WARNING,
        "Find out who changed it; consumers that still use it may fail.",
    )
    SUCCESSOR_NOT_LISTED = (
        "successor-not-listed",
        Severity.WARNING,
        "Add the current key to that list at OpenRouter; otherwise the next rotation adds its new key instead.",
    )
    DEAD_KEY_LISTED = (
        "dead-key-listed",
        Severity.WARNING,
        "Take the dead key out of the list at OpenRouter, which refuses every other change of a list that names one.",
    )
    WITHOUT_DEPLOYMENT = (
        "no-deployment",
        Severity.WARNING,
        "Deploy the rotation again, or run remove-rotation to remove it for good.",
    )
    HELD_KEY_UNRECORDED = (
        "held-key-unrecorded",
        Severity.CRITICAL,
        "Audit with repair; if that does not repair it, run the rotation, which publishes a new key everywhere.",
    )
    ORPHAN = (
        "orphan",
        Severity.WARNING,
        "Audit with repair, or delete it at OpenRouter once you are sure that nobody uses it.",
    )
    MARKED_NOT_OURS = (
        "marked-not-ours",
        Severity.NOTICE,
        (
            "No action if another Prefect server rotates keys of this account. If this server replaces that one, set "
            "the variable key-rotation_installation to the id of that one."
        ),
    )
    UNMANAGED = ("key-of-no-rotation", Severity.NOTICE, "Put it under rotation (adopt), limit it, or delete it.")
    NOT_SEEN = (
        "not-seen",
        Severity.NOTICE,
        "No action if the account has none; otherwise use a management key that may see them.",
    )
    LOGS_CHOSEN_KEYS = (
        "logs-chosen-keys",
        Severity.NOTICE,
        "Choose new keys there at OpenRouter, if they are to be logged.",
    )
    IN_CHANGE = ("rotation-in-change", Severity.NOTICE, "No action: the next audit looks again.")


@dataclass(frozen=True)
class Finding:
    """A difference that an audit has found.

    Args:
        kind: Its kind.
        sentence: What was found.
        rotation: The rotation's name, if it concerns one.
        key_label: The key's label, if it concerns one.
        key_hash: The key's hash, if it concerns one.
        graded: Its severity, if that is not the usual one of its kind.
        repaired: Whether this audit has repaired it.
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
        """The severity of this finding."""
        return self.graded or self.kind.severity

    @property
    def needs_person(self) -> bool:
        """Whether a person must act."""
        return self.severity is not Severity.NOTICE and not self.repaired


@dataclass
class Counts:
    """The number of keys that an audit has read, by owner.

    Args:
        seen: All of them.
        of_rotations: Keys in a ledger.
        unrecorded: Keys with a marker that are in no ledger: orphans, keys of other installations, and new keys.
        unmanaged: Keys without a marker that are in no ledger.
    """

    seen: int = 0
    of_rotations: int = 0
    unrecorded: int = 0
    unmanaged: int = 0


class CappedFindings:
    """Findings of one kind, of which only the first are kept, so that memory stays bounded.

    Args:
        kind: The kind.
        more: What the others are, as the sentence that counts them says.
    """

    def __init__(self, kind: Kind, more: str) -> None:
        self._kind = kind
        self._more = more
        self._kept: list[Finding] = []
        self._left_out = 0

    def add(self, finding: Finding | None) -> None:
        """Keep a finding, or count it if `MOST_KEPT` are kept already; `None` is ignored."""
        if finding is None:
            return
        if len(self._kept) < MOST_KEPT:
            self._kept.append(finding)
        else:
            self._left_out += 1

    def findings(self) -> list[Finding]:
        """Return the kept findings, and one that counts the others."""
        if not self._left_out:
            return self._kept
        return [*self._kept, Finding(self._kind, f"Further {self._more}, not listed: {self._left_out}.")]


@dataclass(frozen=True)
class Report:
    """The result of an audit.

    Args:
        connection: The audited connection.
        at: When, UTC.
        counts: The number of keys; `None` if OpenRouter refused the management key.
        findings: The findings, the most severe first.
    """

    connection: str
    at: datetime
    counts: Counts | None
    findings: tuple[Finding, ...]

    def needing_person(self) -> list[Finding]:
        """Return the findings on which a person must act."""
        return [finding for finding in self.findings if finding.needs_person]
