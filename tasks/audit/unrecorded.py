"""Pure assessments of keys that are in no ledger."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from blocks.openrouter.keys import ApiKey
from tasks.audit.findings import MOST_KEPT, Finding, Kind, Severity
from tasks.audit.ledgers import LedgerSet
from tasks.model.keys import Marker, read_marker
from tasks.model.times import show_time

MAY_STILL_RUN_FOR = timedelta(hours=1)
"""How long a run may take, or be late; an earlier state is not reported as left behind."""


@dataclass(frozen=True)
class LostLedger:
    """A rotation whose ledger is lost.

    Args:
        name: The rotation's name.
        keys: Its keys that were found by their markers.
    """

    name: str
    keys: tuple[ApiKey, ...]


def find_lost_ledgers(ours: Iterable[ApiKey], ledgers: LedgerSet, deployed: Collection[str]) -> list[LostLedger]:
    """Return the rotations that have a deployment and keys, but no ledger.

    Args:
        ours: The keys that this installation made and that are in no ledger.
        ledgers: All ledgers.
        deployed: The rotations that have a deployment.
    """
    keys: dict[str, list[ApiKey]] = {}
    for key in ours:
        mark = read_marker(key.name)
        if mark and mark.rotation in deployed and mark.rotation not in ledgers.values:
            keys.setdefault(mark.rotation, []).append(key)
    return [LostLedger(name, tuple(found)) for name, found in keys.items()]


def judge_lost(lost: LostLedger, now: datetime) -> list[Finding]:
    """Report a lost ledger; nothing while all of its keys are so new that a run may still record them."""
    if all(is_new(key, now) for key in lost.keys):
        return []
    labels = ", ".join(key.label for key in lost.keys[:MOST_KEPT])
    sentence = f"The ledger of rotation {lost.name} is gone; its keys at OpenRouter are {labels}."
    return [Finding(Kind.LEDGER_LOST, sentence, lost.name)]


def is_new(key: ApiKey, now: datetime) -> bool:
    """Return whether the run that made a key may still be running."""
    return now - key.created_at <= MAY_STILL_RUN_FOR


def judge_key_not_ours(
    key: ApiKey, mark: Marker, installation: str, ledgers: LedgerSet, deployed: Collection[str], now: datetime
) -> Finding | None:
    """Report a key that another installation made.

    Args:
        key: The key.
        mark: Its marker.
        installation: The id of this Prefect installation.
        ledgers: All ledgers.
        deployed: The rotations that have a deployment.
        now: The current time, UTC.

    Returns:
        The finding; `None` if the key is new or the ledger of its rotation is unreadable. A person must act if this
            server has a deployment of that name but no ledger, as after the loss of its database.
    """
    if is_new(key, now) or mark.rotation in ledgers.damaged:
        return None
    other = f"in the installation {mark.installation}; this one is {installation}"
    former = "which this Prefect server does not know"
    sentence = f"{_made(key, mark)}{' ' + other if mark.installation else ', ' + former}."
    grave = Severity.WARNING if mark.rotation in deployed and mark.rotation not in ledgers.values else None
    return Finding(Kind.MARKED_NOT_OURS, sentence, mark.rotation, key.label, key.hash, grave)


def judge_orphan(
    key: ApiKey, ledgers: LedgerSet, deployed: Collection[str], holders: Collection[str], now: datetime
) -> Finding | None:
    """Report a key that this installation made and that is in no ledger.

    Args:
        key: The key.
        ledgers: All ledgers.
        deployed: The rotations that have a deployment.
        holders: The destinations that hold it.
        now: The current time, UTC.

    Returns:
        The finding; `None` if the key is new, or the ledger of its rotation is unreadable or lost.
    """
    mark = read_marker(key.name)
    name = mark.rotation if mark else ""
    if not mark or is_new(key, now) or name in ledgers.damaged or (name in deployed and name not in ledgers.values):
        return None
    if holders:
        sentence = f"{_made(key, mark)}; it is held by {', '.join(holders)}, and is in no ledger."
        return Finding(Kind.HELD_KEY_UNRECORDED, sentence, name, key.label, key.hash)
    return Finding(Kind.ORPHAN, f"{_made(key, mark)}, and is in no ledger.", name, key.label, key.hash)


def _made(key: ApiKey, mark: Marker) -> str:
    return (
        f"The key {key.label} was made at {show_time(key.created_at)} by run {mark.run_id} of rotation {mark.rotation}"
    )
