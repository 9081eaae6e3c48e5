"""The ledger is small, contains no secret, and is written by one run at a time."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from blocks.errors import LedgerError, OtherRunError
from tasks.model.keys import fingerprint
from tasks.model.ledger import Ledger, parse_ledger
from tasks.model.records import Current, MadeKey, Superseded
from tasks.model.room import MAX_LEDGER_BYTES, has_room_for_next, largest_size, size
from tasks.model.rotation import KeySettings, Retirement, Rotation
from tasks.model.times import show_time
from tasks.world.open_ledger import OpenLedger
from tests.memory import Memory

NOW = datetime(2026, 12, 1, tzinfo=UTC)
KEY = KeySettings(name="checkout")


def superseded(number: int) -> Superseded:
    """Return a superseded key with fields of realistic length."""
    return Superseded(
        hash=f"{number:064x}",
        label="sk-or-v1-0e6...1c96",
        fingerprint="0" * 16,
        made_by=uuid4(),
        connection="openrouter",
        workspace_id=str(uuid4()),
        revoke_at=NOW + timedelta(days=number),
    )


async def test_two_attempts_of_one_run_are_two_writers() -> None:
    """After a Retry of the same flow run, the former attempt must stop before its next write."""
    variable, run_id = Memory(), uuid4()
    first, retry = OpenLedger("checkout", variable, run_id), OpenLedger("checkout", variable, run_id)
    await first.load()
    await first.save(Ledger())
    await retry.load()
    await retry.save(retry.ledger)

    with pytest.raises(OtherRunError):
        await first.save(first.ledger)


async def test_a_ledger_that_would_not_fit_is_refused_before_it_is_written() -> None:
    """A Prefect variable holds 5,000 bytes; a larger ledger is refused in one sentence, and the stored one remains."""
    variable = Memory()
    ledger = OpenLedger("checkout", variable, uuid4())
    await ledger.load()

    with pytest.raises(LedgerError, match="no room for another key"):
        await ledger.save(Ledger(superseded=tuple(superseded(n) for n in range(30))))

    assert variable.value is None


def test_ten_superseded_keys_fit() -> None:
    """A rotation may have ten keys in their overlap at once."""
    keys = tuple(superseded(n) for n in range(10))
    current = Current(
        **superseded(11).model_dump(include=set(MadeKey.model_fields)),
        since=NOW,
        rotated_by=uuid4(),
        destinations=("secret/a",) * 5,
    )

    assert size(Ledger(current=current, superseded=keys)) < MAX_LEDGER_BYTES


@pytest.mark.parametrize("retire_when", ["overlap-ended", "unused"])
def test_what_is_noted_about_a_superseded_key_was_reckoned_with(
    retire_when: Literal["overlap-ended", "unused"],
) -> None:
    """A key that is postponed, capped, disabled and about to be revoked takes no more room than was reserved for it."""
    ledger = Ledger(superseded=(superseded(1),), retirement=Retirement(retire_when=retire_when))
    noted: dict[str, Any] = {"revoking": True, "at_once": True, "disabled": True, "capped": True, "overlap_ends": NOW}
    if retire_when == "unused":
        noted |= {"postponed": 12, "usage": Decimal("123.456789"), "usage_since": NOW + timedelta(microseconds=1)}

    full = ledger.changed(ledger.superseded[0].hash, **noted)

    assert size(ledger) < size(full) <= largest_size(ledger)


@pytest.mark.parametrize("named", ["workspace", "place"])
def test_the_next_key_needs_room_for_what_it_names(named: str) -> None:
    """A ledger with room for the next key and no more has none once that key is in a workspace, or at a place."""
    plain, run_id = Rotation(name="checkout", connection="openrouter", key=KEY, destinations=["secret/a"]), uuid4()
    elsewhere = plain.model_copy(update={"key": KEY.model_copy(update={"workspace_id": "0" * 36})})

    def is_full(letters: int) -> bool:
        return not has_room_for_next(Ledger(package="x" * letters), plain, run_id, {}, NOW)

    fullest = Ledger(package="x" * (bisect_left(range(MAX_LEDGER_BYTES), True, key=is_full) - 1))

    asked, places = (elsewhere, {}) if named == "workspace" else (plain, {"secret/a": "apps/checkout of Vault"})
    assert has_room_for_next(fullest, plain, run_id, {}, NOW)
    assert not has_room_for_next(fullest, asked, run_id, places, NOW)


def test_an_emergency_fits_into_a_full_ledger() -> None:
    """In an emergency, the data about a key's use is dropped, which makes room."""
    noted = {"postponed": 12, "usage": Decimal("123.456789"), "usage_since": NOW}
    ledger = Ledger(superseded=(superseded(1),)).changed(superseded(1).hash, **noted)

    assert size(ledger.hastened(NOW)) < size(ledger)


PENDING = {"run_id": str(uuid4()), "connection": "openrouter", "intended_at": NOW.isoformat()}
DAMAGED = [
    "text",
    [],
    {"format": "two"},
    {"current": {"hash": 1}},
    {"surprise": 1},
    {"installation": "not seven letters"},
    {"pending": {**PENDING, "destinations": ["secret/a", "secret/b"], "places": ["somewhere"]}},
]


@pytest.mark.parametrize("value", DAMAGED)
def test_a_damaged_ledger_is_told_plainly(value: Any) -> None:
    """A ledger edited by hand leads to one sentence that says where it is damaged and what to do."""
    with pytest.raises(LedgerError, match="The ledger of rotation checkout cannot be read"):
        parse_ledger("checkout", value)


MADE = {"hash": "f01d", "label": "sk-or-v1-0e6...1c96", "fingerprint": "0123", "connection": "openrouter"}
AT = NOW.isoformat()
BUDGETED = {"terms": {"expires_at": AT}, "budget": {"carried": "1", "ends_at": AT}}
CURRENT = {**MADE, **BUDGETED, "destinations": ["secret/a"], "since": AT, "late_until": AT}
TIMES = {
    "current": ({"current": CURRENT}, ["since", "late_until", "terms.expires_at", "budget.ends_at"]),
    "kept": ({"kept": CURRENT}, ["since"]),
    "superseded.0": (
        {"superseded": [{**MADE, "revoke_at": AT, "budget": BUDGETED["budget"]}]},
        ["since", "overlap_ends", "revoke_at", "usage_since", "late_until", "budget.ends_at"],
    ),
    "pending": (
        {"pending": {**PENDING, **BUDGETED, "destinations": ["secret/a"]}},
        ["intended_at", "terms.expires_at", "budget.ends_at"],
    ),
    "unresolved.0": ({"unresolved": [{"run_id": str(uuid4()), "connection": "openrouter", "since": AT}]}, ["since"]),
    "written_off.0": (
        {"written_off": [{"label": "l", "connection": "openrouter", "reason": "r", "at": AT, "by": str(uuid4())}]},
        ["at"],
    ),
    "emergency": ({"emergency": {"run_id": str(uuid4()), "at": AT}}, ["at"]),
}
"""By entry: a ledger with it, and the times in it."""


def with_time(entry: str, field: str, time: str) -> Any:
    """Return a ledger in which a person has set one time of an entry."""
    value = json.loads(json.dumps(TIMES[entry][0]))
    at: Any = value
    *path, last = [int(part) if part.isdigit() else part for part in f"{entry}.{field}".split(".")]
    for part in path:
        at = at[part]
    at[last] = time
    return value


@pytest.mark.parametrize("time", ["2026-12-24T00:00:00", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize(("entry", "field"), [(entry, field) for entry, (_, named) in TIMES.items() for field in named])
def test_a_time_that_cannot_be_compared_is_told_plainly(entry: str, field: str, time: str) -> None:
    """Given an edit by hand without a zone, or beyond all times, when it is read, then its place is named."""
    parse_ledger("checkout", with_time(entry, field, AT))

    with pytest.raises(LedgerError, match=rf"cannot be read \(at {re.escape(f'{entry}.{field}')}\)"):
        parse_ledger("checkout", with_time(entry, field, time))


def test_a_time_of_another_zone_is_shown_in_utc() -> None:
    """Given an edit by hand with an offset, when it is read, then it is the same moment in UTC, as all texts say."""
    read = parse_ledger("checkout", with_time("superseded.0", "revoke_at", "2026-12-24T01:00:00+02:00"))

    assert show_time(read.superseded[0].revoke_at) == "2026-12-23 23:00 UTC"


@given(st.text(min_size=8))
def test_a_fingerprint_tells_nothing_of_the_key(secret: str) -> None:
    """Only a truncated digest of a key is ever stored."""
    found = fingerprint(SecretStr(secret))

    assert found is not None
    assert len(found) == 16
    assert secret not in json.dumps(found)


def test_the_ledger_survives_the_way_through_a_variable() -> None:
    """A ledger written as JSON is read back unchanged."""
    ledger = Ledger(superseded=(superseded(1),))

    assert parse_ledger("checkout", json.loads(json.dumps(ledger.to_json()))) == ledger


def test_due_is_what_has_ended() -> None:
    """A superseded key is due at the exact end of its overlap."""
    ledger = Ledger(superseded=(superseded(1), superseded(2)))

    assert [key.revoke_at for key in ledger.due(NOW + timedelta(days=1))] == [NOW + timedelta(days=1)]
