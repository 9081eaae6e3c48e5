"""What a run does with what it finds at its start: pure decisions, no input and no output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

from tasks.ledger import Ledger, Superseded

MAYBE = "?"
"""Stands for the content of a former destination that can no longer be read."""


class Finding(Enum):
    """What a run finds when it starts; the value says it in words."""

    FIRST_RUN = "there is no ledger yet"
    NOTHING_PENDING = "nothing is pending"
    ALREADY_ROTATED = "this run has already made the current key"
    ROTATED_SINCE = "a later run has rotated since"
    INTENT_WITHOUT_KEY = "a create was announced, and its outcome is not known"
    KEY_UNPUBLISHED = "a key was created, and no destination holds it"
    KEY_PUBLISHED = "a key was created, and at least one destination holds it"
    KEY_GIVEN_UP = "a key was created, and may be held where it cannot be finished"


@dataclass(frozen=True)
class Identity:
    """Which run this is.

    Args:
        id: The flow run's id, the same in every Retry.
        first_started: When its first attempt started, UTC.
        attempt: 1 for the first attempt, more for a Retry.
        emergency: Whether every older key is to die at once.
    """

    id: UUID
    first_started: datetime
    attempt: int = 1
    emergency: bool = False


def find(ledger: Ledger | None, run: Identity, held: Mapping[str, str | None]) -> Finding:
    """Say what a run finds when it starts.

    Args:
        ledger: The rotation's ledger; `None` where there is none.
        run: Which run asks.
        held: The fingerprint of what each destination holds, those of a pending key included; `None` for nothing,
            `MAYBE` for a former destination that cannot be read.

    Returns:
        The finding, which decides what the run does.
    """
    if ledger is None:
        return Finding.FIRST_RUN
    if ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by):
        return Finding.ALREADY_ROTATED
    if run.attempt > 1 and _rotated_since(ledger, run):
        return Finding.ROTATED_SINCE
    if ledger.pending is None:
        return Finding.NOTHING_PENDING
    if ledger.pending.key is None:
        return Finding.INTENT_WITHOUT_KEY
    return _find_key(ledger.pending.key.fingerprint, run, held)


def _rotated_since(ledger: Ledger, run: Identity) -> bool:
    # A first attempt is a new rotation, whatever the clocks say; only a Retry can be out of date.
    made_before = any(key.made_by == run.id for key in ledger.superseded)
    return made_before or (ledger.current is not None and ledger.current.since > run.first_started)


def _find_key(fingerprint: str, run: Identity, held: Mapping[str, str | None]) -> Finding:
    published = [name for name, content in held.items() if content == fingerprint]
    if not published and MAYBE not in held.values():
        return Finding.KEY_UNPUBLISHED
    # In an emergency even a half-published key counts as an older one.
    return Finding.KEY_PUBLISHED if published and not run.emergency else Finding.KEY_GIVEN_UP


def needed_by(key: Superseded, ledger: Ledger, held: Mapping[str, str | None]) -> list[str]:
    """Say which destinations stand in the way of revoking a key.

    Args:
        key: The superseded key.
        ledger: The rotation's ledger.
        held: The fingerprint of what each destination holds.

    Returns:
        The destinations that hold the key. Where its fingerprint is not known, those that hold anything but the
        current key.
    """
    if key.fingerprint:
        return [name for name, content in held.items() if content == key.fingerprint]
    current = ledger.current.fingerprint if ledger.current else None
    return [name for name, content in held.items() if content != current]
