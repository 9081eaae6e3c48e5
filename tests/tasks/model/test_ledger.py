"""The ledger is small, contains no secret, and is written by one run at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from blocks.errors import LedgerError, PlaceLostError
from tasks.model.keys import fingerprint
from tasks.model.ledger import Ledger, parse_ledger
from tasks.model.records import Current, MadeKey, Superseded
from tasks.model.room import MAX_LEDGER_BYTES, largest_size, size
from tasks.model.rotation import Retirement
from tasks.world.open_ledger import OpenLedger
from tests.memory import Memory

NOW = datetime(2026, 12, 1, tzinfo=UTC)


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

    with pytest.raises(PlaceLostError):
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
