"""Pure decisions: what a run does, given what it finds when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

from pydantic import SecretStr

from tasks.model.keys import fingerprint, label_agrees
from tasks.model.ledger import Ledger
from tasks.model.records import MadeKey, Superseded
from tasks.model.rotation import Retirement

UNREADABLE = "?"
"""The fingerprint of a place that can no longer be read."""
MAX_DOUBLINGS = 16
"""The maximum number of times that the interval between two checks of a key in use is doubled."""
LONGEST_POSTPONEMENT = timedelta(days=1)
"""The longest interval between two checks of a key in use."""


class Situation(Enum):
    """The situation of a run at its start; the value describes it in words."""

    FIRST_RUN = "there is no ledger yet"
    NOTHING_PENDING = "nothing is pending"
    ALREADY_ROTATED = "this run has already made the current key"
    ROTATED_SINCE = "this run has completed before, or a later run has rotated since"
    TOO_YOUNG = "the current key is younger than its minimum age, or newer than this run's scheduled time"
    INTENT_WITHOUT_KEY = "the creation of a key was announced, and its outcome is unknown"
    KEY_UNPUBLISHED = "a key was created, but no destination holds it"
    KEY_PUBLISHED = "a key was created, and at least one destination holds it"
    KEY_GIVEN_UP = "a key was created that a destination may hold, but its rotation cannot be finished"


NOTHING_TO_PUBLISH = {Situation.ALREADY_ROTATED, Situation.ROTATED_SINCE, Situation.TOO_YOUNG}
"""The situations in which a run neither creates nor finishes a key."""


@dataclass(frozen=True)
class Identity:
    """The identity of a run.

    Args:
        id: The flow run's id, which a Retry keeps.
        first_started: When its first attempt started, UTC.
        attempt: 1 for the first attempt, more for a Retry.
        emergency: Whether to revoke every older key immediately.
        scheduled_for: The time for which its schedule created it, UTC; `None` for a manual run.
        completed: Whether an earlier attempt has completed, so that nothing is left to publish.
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
    """Return the situation of a run, which decides what it does.

    Args:
        ledger: The rotation's ledger; `None` if there is none.
        run: The run.
        fingerprints: The fingerprint of each destination's content, including the destinations of a pending key; `None`
            for nothing, `UNREADABLE` for a former destination that cannot be read.
        now: The current time, UTC.
        minimum_age: A scheduled run does not replace a current key that is younger than this.
    """
    if ledger is None:
        return Situation.ROTATED_SINCE if run.completed else Situation.FIRST_RUN
    if ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by):
        return Situation.ALREADY_ROTATED
    if rotated_since(ledger, run, now):
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
    if run.scheduled_for is None or run.emergency or ledger.current is None or ledger.current.is_adopted:
        return False
    published = all(content == ledger.current.fingerprint for content in fingerprints.values())
    # If several runs waited for a scheduler or a worker, the first one has rotated for all of them.
    return published and now >= ledger.current.since > min(now - minimum_age, run.scheduled_for)


def outlives(expires_at: datetime | None, now: datetime, time_to_replace: timedelta) -> bool:
    """Return whether a key that is left in use now outlives the next rotation that can replace it.

    Args:
        expires_at: When the key expires, UTC; `None` for never.
        now: The current time, UTC.
        time_to_replace: How long it must still be valid (`Rotation.time_to_replace`).
    """
    return expires_at is None or expires_at >= now + time_to_replace


def expires_too_soon(ledger: Ledger, run: Identity, now: datetime, time_to_replace: timedelta) -> bool:
    """Return whether a scheduled run must replace the current key, although it is young, because it would expire."""
    current = ledger.current
    # A key newer than the scheduled time has its whole life ahead: another run has rotated on behalf of this one.
    if current is None or run.scheduled_for is None or current.since > run.scheduled_for:
        return False
    return not outlives(current.expires_at, now, time_to_replace)


def rotated_since(ledger: Ledger, run: Identity, now: datetime) -> bool:
    """Return whether a retried run has nothing left to publish.

    That is so if it has completed, or if another run has made another key current since it first started; for an
    emergency, if it or a later emergency has published its key. A first attempt is never obsolete, nor is a run whose
    own key is pending, whatever the clocks say. A time after `now` comes from a fast clock, and proves no later run.
    """
    if run.completed:
        return True
    unfinished = ledger.pending is not None and ledger.pending.run_id == run.id
    if run.attempt == 1 or ledger.current is None or unfinished:
        return False
    # A key that was given up never was current: the run that gave it up may have failed, too.
    if any(key.made_by == run.id and key.since for key in ledger.superseded):
        return True
    if run.emergency:
        return emergency_is_done(ledger, run, now)
    return now >= ledger.current.since > run.first_started


def emergency_is_done(ledger: Ledger, run: Identity, now: datetime) -> bool:
    """Return whether an emergency, or a later one, has published its key, so that every older key is due."""
    # A later ordinary run does not count: it leaves them in their overlap.
    last = ledger.emergency
    return run.completed or (last is not None and (last.run_id == run.id or now >= last.at > run.first_started))


def keys_due(ledger: Ledger, run: Identity, now: datetime) -> list[Superseded]:
    """Return the superseded keys that a run must revoke; an emergency, all that it made due, whatever the clock says.

    If the clock was fast when it did, and has been corrected since, their due times are in the future.
    """
    last = ledger.emergency
    own = run.emergency and last is not None and last.run_id == run.id
    return ledger.due(max(now, last.at) if own and last else now)


def _find_key(fingerprint: str, run: Identity, fingerprints: Mapping[str, str | None]) -> Situation:
    published = [name for name, content in fingerprints.items() if content == fingerprint]
    if not published and UNREADABLE not in fingerprints.values():
        return Situation.KEY_UNPUBLISHED
    # In an emergency, a half-published key is revoked like any older key.
    return Situation.KEY_PUBLISHED if published and not run.emergency else Situation.KEY_GIVEN_UP


def needed_by(key: MadeKey, held: Mapping[str, SecretStr | None]) -> list[str]:
    """Return the destinations because of which a key must not be revoked: they hold it.

    If its fingerprint is unknown, they hold what may be the key, according to its label.

    Args:
        key: The key.
        held: The content of each destination.
    """
    if key.fingerprint:
        return [name for name, secret in held.items() if fingerprint(secret) == key.fingerprint]
    return [name for name, secret in held.items() if label_agrees(key.label, secret)]


class Verdict(Enum):
    """The decision about a superseded key that is due."""

    REVOKE = "revoke it"
    POSTPONE = "it is still used: look at it again later"
    KEEP = "it is still used: keep it until somebody decides"


@dataclass(frozen=True)
class Judgement:
    """The decision about a superseded key that is due, and what is known about its use.

    Args:
        verdict: The decision.
        check_again_at: When to check it again, if it is postponed.
        unused_since: Since when no use has been seen.
    """

    verdict: Verdict
    check_again_at: datetime | None = None
    unused_since: datetime | None = None


def judge(
    key: Superseded, policy: Retirement, usage: Decimal, last_used_at: datetime | None, now: datetime
) -> Judgement:
    """Decide about a superseded key whose overlap has ended, under a policy that requires it to be unused.

    Args:
        key: The key, which is due.
        policy: The rotation's policy.
        usage: The key's total spending, US dollars.
        last_used_at: When it was last used, if OpenRouter reports that.
        now: The current time, UTC.
    """
    overlap_ended = key.overlap_ends or key.revoke_at
    if last_used_at is not None:
        unused_since = max(last_used_at, overlap_ended)
    else:
        # Without a date, only a change of the spending shows use; the first check records the value to compare with.
        seen = key.usage_since if key.usage == usage and key.usage_since else now
        unused_since = max(seen, overlap_ended)
    if now - unused_since >= policy.quiet_time:
        return Judgement(Verdict.REVOKE, unused_since=unused_since)
    deadline = max((key.since or overlap_ended) + policy.max_overlap, overlap_ended)
    if now >= deadline:
        verdict = Verdict.KEEP if policy.on_still_used == "keep" else Verdict.REVOKE
        return Judgement(verdict, unused_since=unused_since)
    wait = max(policy.quiet_time, min(policy.quiet_time * 2 ** min(key.postponed, MAX_DOUBLINGS), LONGEST_POSTPONEMENT))
    return Judgement(Verdict.POSTPONE, min(now + wait, deadline), unused_since)


def has_work(ledger: Ledger, run: Identity, now: datetime) -> bool:
    """Return whether a run that publishes nothing has more to do than schedule the next retirement."""
    return (
        (run.emergency and not emergency_is_done(ledger, run, now))
        or bool(keys_due(ledger, run, now))
        or any(at <= now for at in ledger.due_times())
        or any(key.capped is False for key in ledger.superseded)
    )
