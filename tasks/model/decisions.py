"""What a run does with what it finds at its start: pure decisions, no input and no output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

from tasks.model.ledger import Ledger, Superseded
from tasks.model.rotation import Retirement

MAYBE = "?"
"""Stands for the content of a former destination that can no longer be read."""
MAX_DOUBLINGS = 16
"""How often the wait between two looks at a key that is still used doubles at most."""
LONGEST_POSTPONEMENT = timedelta(days=1)
"""How long a key that is still used is left alone at most, before it is looked at again."""


class Situation(Enum):
    """What a run finds when it starts; the value says it in words."""

    FIRST_RUN = "there is no ledger yet"
    NOTHING_PENDING = "nothing is pending"
    ALREADY_ROTATED = "this run has already made the current key"
    ROTATED_SINCE = "this run has completed before, or a later run has rotated since"
    TOO_YOUNG = "the current key is younger than its minimum age, or than the time for which this run was scheduled"
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
        scheduled_for: When its schedule meant it to run, UTC; `None` for a run that a person started.
        completed: Whether an earlier attempt has completed, so that this one was started by mistake, or to ask.
    """

    id: UUID
    first_started: datetime
    attempt: int = 1
    emergency: bool = False
    scheduled_for: datetime | None = None
    completed: bool = False


def assess(
    ledger: Ledger | None,
    run: Identity,
    fingerprints: Mapping[str, str | None],
    now: datetime,
    minimum_age: timedelta = timedelta(0),
) -> Situation:
    """Say what a run finds when it starts.

    Args:
        ledger: The rotation's ledger; `None` where there is none.
        run: Which run asks.
        fingerprints: The fingerprint of what each destination holds, those of a pending key included; `None` for
            nothing, `MAYBE` for a former destination that cannot be read.
        now: The current moment, UTC.
        minimum_age: A scheduled run leaves a current key alone that is younger.

    Returns:
        The situation, which decides what the run does.
    """
    if ledger is None:
        return Situation.ROTATED_SINCE if run.completed else Situation.FIRST_RUN
    if ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by):
        return Situation.ALREADY_ROTATED
    if rotated_since(ledger, run):
        return Situation.ROTATED_SINCE
    if ledger.pending is None:
        young = _too_young(ledger, run, fingerprints, now, minimum_age)
        return Situation.TOO_YOUNG if young else Situation.NOTHING_PENDING
    if ledger.pending.key is None:
        return Situation.INTENT_WITHOUT_KEY
    return _find_key(ledger.pending.key.fingerprint, run, fingerprints)


def _too_young(
    ledger: Ledger, run: Identity, fingerprints: Mapping[str, str | None], now: datetime, minimum_age: timedelta
) -> bool:
    if run.scheduled_for is None or run.emergency or ledger.current is None:
        return False
    published = all(content == ledger.current.fingerprint for content in fingerprints.values())
    # Of several runs that waited for a scheduler or a worker to come back, the first has rotated for all.
    return published and now >= ledger.current.since > min(now - minimum_age, run.scheduled_for)


def rotated_since(ledger: Ledger, run: Identity) -> bool:
    """Say whether a run that is retried has nothing left to do: it has completed, or another one has rotated since.

    Args:
        ledger: The rotation's ledger.
        run: Which run asks. A first attempt is never out of date, nor is what it has begun, whatever the clocks say.

    Returns:
        Whether it has completed before, or another run has made another key current since it was first started; of an
        emergency, whether it or a later one has published its key since.
    """
    if run.completed:
        return True
    unfinished = ledger.pending is not None and ledger.pending.run_id == run.id
    if run.attempt == 1 or ledger.current is None or unfinished:
        return False
    if any(key.made_by == run.id for key in ledger.superseded):
        return True
    if run.emergency:
        # What an emergency was to end, a later run has left in its overlap, unless that was an emergency too.
        last = ledger.emergency
        return last is not None and (last.run_id == run.id or last.at > run.first_started)
    return ledger.current.since > run.first_started


def _find_key(fingerprint: str, run: Identity, fingerprints: Mapping[str, str | None]) -> Situation:
    published = [name for name, content in fingerprints.items() if content == fingerprint]
    if not published and MAYBE not in fingerprints.values():
        return Situation.KEY_UNPUBLISHED
    # In an emergency even a half-published key counts as an older one.
    return Situation.KEY_PUBLISHED if published and not run.emergency else Situation.KEY_GIVEN_UP


def needed_by(key: Superseded, ledger: Ledger, fingerprints: Mapping[str, str | None]) -> list[str]:
    """Say which destinations stand in the way of revoking a key.

    Args:
        key: The superseded key.
        ledger: The rotation's ledger.
        fingerprints: The fingerprint of what each destination holds.

    Returns:
        The destinations that hold the key. Where its fingerprint is not known, those that hold anything but the
        current key.
    """
    if key.fingerprint:
        return [name for name, content in fingerprints.items() if content == key.fingerprint]
    current = ledger.current or ledger.kept
    return [name for name, content in fingerprints.items() if not current or content != current.fingerprint]


class Verdict(Enum):
    """What is done with a superseded key that is due."""

    REVOKE = "it is revoked"
    POSTPONE = "it is still used, and looked at again later"
    KEEP = "it is still used, and kept until a person decides"


@dataclass(frozen=True)
class Judgement:
    """What is done with a superseded key that is due, and what was learnt about its use.

    Args:
        verdict: What is done.
        look_again: When it is looked at again, where it was postponed.
        unused_since: Since when no use was seen.
    """

    verdict: Verdict
    look_again: datetime | None = None
    unused_since: datetime | None = None


def judge(
    key: Superseded, policy: Retirement, usage: Decimal, last_used_at: datetime | None, now: datetime
) -> Judgement:
    """Say whether a superseded key whose overlap has ended may be revoked, where its policy asks for it to be unused.

    Args:
        key: The superseded key, due.
        policy: The rotation's policy.
        usage: What the key has spent in all, US dollars.
        last_used_at: When it was used last, where OpenRouter says so.
        now: The current moment, UTC.

    Returns:
        The judgement.
    """
    overlap_ended = key.overlap_ends or key.revoke_at
    if last_used_at is not None:
        unused_since = max(last_used_at, overlap_ended)
    else:
        # Without a date only a comparison with what was seen before tells, and the first look is that "before".
        seen = key.usage_since if key.usage == usage and key.usage_since else now
        unused_since = max(seen, overlap_ended)
    if now - unused_since >= policy.quiet_time:
        return Judgement(Verdict.REVOKE, unused_since=unused_since)
    last_call = max((key.since or overlap_ended) + policy.max_overlap, overlap_ended)
    if now >= last_call:
        verdict = Verdict.KEEP if policy.on_still_used == "keep" else Verdict.REVOKE
        return Judgement(verdict, unused_since=unused_since)
    wait = max(policy.quiet_time, min(policy.quiet_time * 2 ** min(key.postponed, MAX_DOUBLINGS), LONGEST_POSTPONEMENT))
    return Judgement(Verdict.POSTPONE, min(now + wait, last_call), unused_since)
