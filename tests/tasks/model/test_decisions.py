"""The situation that a run finds at its start: the protocol's table, row by row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from pydantic import SecretStr

from tasks.model.decisions import UNREADABLE, Identity, Situation, assess, judge, needed_by
from tasks.model.keys import fingerprint
from tasks.model.ledger import Ledger
from tasks.model.records import Current, Emergency, MadeKey, Pending, Superseded
from tasks.model.rotation import Retirement

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
ME, OTHER, OLDER = uuid4(), uuid4(), uuid4()
PLACES = ("vault-secret/checkout", "secret/checkout")


def made(key_hash: str, by: object = OTHER) -> dict[str, object]:
    """Return the fields of a key that this installation made."""
    return {
        "hash": key_hash,
        "label": f"sk-or-v1-{key_hash}",
        "fingerprint": f"print-{key_hash}",
        "made_by": by,
        "connection": "openrouter",
    }


def current(by: object = OTHER, since: datetime = NOW - timedelta(days=30), rotated_by: object = None) -> Current:
    """Return a current key."""
    return Current(**made("current", by), since=since, rotated_by=rotated_by or by, destinations=PLACES)


def pending(*, key: bool = True) -> Pending:
    """Return a pending key of another run."""
    return Pending(
        run_id=OTHER,
        connection="openrouter",
        destinations=PLACES,
        intended_at=NOW,
        key=MadeKey(**made("pending")) if key else None,
    )


def superseded(by: object = OLDER, fingerprint: str = "print-superseded", since: datetime | None = NOW) -> Superseded:
    """Return a superseded key; one that was given up before it became current has no `since`."""
    return Superseded(**{**made("superseded", by), "fingerprint": fingerprint}, since=since, revoke_at=NOW)


NEW_RUN = Identity(ME, NOW)
RETRY = Identity(ME, NOW - timedelta(days=1), attempt=2)
EMERGENCY = Identity(ME, NOW, emergency=True)
NOWHERE = dict.fromkeys(PLACES)
AT_ONE = {PLACES[0]: "print-pending", PLACES[1]: "print-current"}
GONE = {PLACES[0]: UNREADABLE, PLACES[1]: "print-current"}


@pytest.mark.parametrize(
    ("given", "ledger", "run", "held", "then"),
    [
        ("no ledger", None, NEW_RUN, NOWHERE, Situation.FIRST_RUN),
        ("this run made the current key", Ledger(current=current(ME)), RETRY, NOWHERE, Situation.ALREADY_ROTATED),
        (
            "this run finished another run's key",
            Ledger(current=current(OTHER, rotated_by=ME)),
            RETRY,
            NOWHERE,
            Situation.ALREADY_ROTATED,
        ),
        (
            "a Retry, and the current key is younger than its first attempt",
            Ledger(current=current(since=NOW)),
            RETRY,
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry whose key was superseded, whatever the clocks say",
            Ledger(current=current(since=NOW - timedelta(days=365)), superseded=(superseded(ME),)),
            RETRY,
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry whose key was given up by a run that failed as well",
            Ledger(current=current(since=NOW - timedelta(days=365)), superseded=(superseded(ME, since=None),)),
            RETRY,
            NOWHERE,
            Situation.NOTHING_PENDING,
        ),
        (
            "a new run, and a clock that has jumped back since the current key was made",
            Ledger(current=current(since=NOW + timedelta(days=365))),
            NEW_RUN,
            NOWHERE,
            Situation.NOTHING_PENDING,
        ),
        (
            "a Retry of an emergency that left its work to a later, ordinary run",
            Ledger(current=current(since=NOW)),
            replace(RETRY, emergency=True),
            NOWHERE,
            Situation.NOTHING_PENDING,
        ),
        (
            "a Retry of an emergency whose key was superseded",
            Ledger(current=current(since=NOW), superseded=(superseded(ME),)),
            replace(RETRY, emergency=True),
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry of an emergency whose key is long gone",
            Ledger(current=current(since=NOW), emergency=Emergency(run_id=ME, at=NOW - timedelta(days=365))),
            replace(RETRY, emergency=True),
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry of an emergency that left its work to a later emergency",
            Ledger(current=current(since=NOW), emergency=Emergency(run_id=OTHER, at=NOW)),
            replace(RETRY, emergency=True),
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry of an emergency that came after another emergency",
            Ledger(current=current(since=NOW), emergency=Emergency(run_id=OTHER, at=NOW - timedelta(days=365))),
            replace(RETRY, emergency=True),
            NOWHERE,
            Situation.NOTHING_PENDING,
        ),
        (
            "a Retry of a run that has completed, though a clock that jumped back makes the current key older",
            Ledger(current=current(since=NOW - timedelta(days=365))),
            replace(RETRY, completed=True),
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry of a run that has completed, and no ledger",
            None,
            replace(RETRY, completed=True),
            NOWHERE,
            Situation.ROTATED_SINCE,
        ),
        (
            "a Retry of a run that has completed, and whose key is the current one",
            Ledger(current=current(ME)),
            replace(RETRY, completed=True),
            NOWHERE,
            Situation.ALREADY_ROTATED,
        ),
        (
            "a Retry whose own key is half-published, though the clocks say that a later run has rotated",
            Ledger(current=current(since=NOW), pending=pending().model_copy(update={"run_id": ME})),
            RETRY,
            AT_ONE,
            Situation.KEY_PUBLISHED,
        ),
        ("a Retry without a current key", Ledger(), RETRY, NOWHERE, Situation.NOTHING_PENDING),
        (
            "a Retry, and a current key of the future, because a clock was ahead",
            Ledger(current=current(since=NOW + timedelta(minutes=40))),
            RETRY,
            NOWHERE,
            Situation.NOTHING_PENDING,
        ),
        (
            "a Retry of an emergency, and an emergency of the future, because a clock was ahead",
            Ledger(current=current(), emergency=Emergency(run_id=OTHER, at=NOW + timedelta(minutes=40))),
            replace(RETRY, emergency=True),
            NOWHERE,
            Situation.NOTHING_PENDING,
        ),
        (
            "a scheduled run, and a current key of its own future, because a clock was wrong",
            Ledger(current=current(since=NOW + timedelta(days=365))),
            replace(NEW_RUN, scheduled_for=NOW),
            dict.fromkeys(PLACES, "print-current"),
            Situation.NOTHING_PENDING,
        ),
        (
            "a scheduled run that waited while another one rotated",
            Ledger(current=current(since=NOW - timedelta(minutes=1))),
            replace(NEW_RUN, scheduled_for=NOW - timedelta(hours=1)),
            dict.fromkeys(PLACES, "print-current"),
            Situation.TOO_YOUNG,
        ),
        ("nothing pending", Ledger(current=current()), NEW_RUN, NOWHERE, Situation.NOTHING_PENDING),
        ("an intent without a hash", Ledger(pending=pending(key=False)), RETRY, NOWHERE, Situation.INTENT_WITHOUT_KEY),
        ("a hash that no destination holds", Ledger(pending=pending()), RETRY, NOWHERE, Situation.KEY_UNPUBLISHED),
        ("a hash that one destination holds", Ledger(pending=pending()), NEW_RUN, AT_ONE, Situation.KEY_PUBLISHED),
        ("the same in an emergency", Ledger(pending=pending()), EMERGENCY, AT_ONE, Situation.KEY_GIVEN_UP),
        (
            "a hash that a vanished destination may hold",
            Ledger(pending=pending()),
            NEW_RUN,
            GONE,
            Situation.KEY_GIVEN_UP,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_run_finds(
    given: str, ledger: Ledger | None, run: Identity, held: dict[str, str | None], then: Situation
) -> None:
    """Each row of the protocol's table leads to exactly one situation."""
    assert assess(ledger, run, held, NOW) is then, given


def test_a_key_that_is_used_for_months_is_looked_at_once_a_day() -> None:
    """However often its revocation was postponed, the time of the next check can be computed."""
    key = superseded().model_copy(update={"postponed": 1_000})
    policy = Retirement(retire_when="unused", max_overlap=timedelta(days=3_000), quiet_time=timedelta(hours=1))

    judgement = judge(key, policy, Decimal(1), NOW, NOW)

    assert judgement.check_again_at == NOW + timedelta(days=1)


FOREIGN = SecretStr("sk-or-v1-ffffffff")
HELD = SecretStr("sk-or-v1-aaa00000bbbb")
LABEL = "sk-or-v1-aaa...bbbb"


def test_a_key_that_a_destination_holds_is_needed() -> None:
    """A superseded key that a person put back into a destination must not be revoked."""
    known = superseded(fingerprint=fingerprint(HELD) or "")

    assert needed_by(known, {PLACES[0]: HELD, PLACES[1]: FOREIGN}) == [PLACES[0]]


def test_a_destination_changed_by_hand_does_not_need_a_superseded_key() -> None:
    """A foreign secret in a destination does not prevent the revocation of a superseded key."""
    assert needed_by(superseded(), {PLACES[0]: FOREIGN, PLACES[1]: None}) == []


def test_a_key_without_fingerprint_is_needed_where_its_label_agrees() -> None:
    """A key recovered by its marker has no fingerprint, but each destination holds what may be it, or cannot be."""
    found_again = superseded(fingerprint="").model_copy(update={"label": LABEL})

    assert needed_by(found_again, {PLACES[0]: HELD, PLACES[1]: FOREIGN}) == [PLACES[0]]
