"""The size of a ledger in its Prefect variable, and whether it has room for another key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tasks.model.keys import INSTALLATION_LENGTH
from tasks.model.ledger import Ledger
from tasks.model.places import kept_places
from tasks.model.records import Budget, MadeKey, Pending
from tasks.model.rotation import Retirement, Rotation
from tasks.model.terms import Terms

MAX_LEDGER_BYTES = 5_000
"""The maximum size of a Prefect variable, as compact JSON."""
RESERVE_BYTES = 300
"""Room reserved for a create of unknown outcome."""


def size(ledger: Ledger) -> int:
    """Return the size of a ledger as compact JSON in bytes, which Prefect limits."""
    return length(ledger.to_json())


def length(value: Any) -> int:
    """Return the size of a value as compact JSON in bytes."""
    return len(json.dumps(value, separators=(",", ":")).encode())


def without_left_places(ledger: Ledger) -> Ledger:
    """Return a ledger without its keys' former places, whose room the keys themselves need more."""
    nothing = {"left_at": ()}
    current, pending = ledger.current, ledger.pending
    if pending and pending.key:
        pending = pending.model_copy(update={"key": pending.key.model_copy(update=nothing)})
    return ledger.model_copy(
        update={
            "current": current and current.model_copy(update=nothing),
            "pending": pending,
            "superseded": tuple(key.model_copy(update=nothing) for key in ledger.superseded),
        }
    )


def largest_size(ledger: Ledger) -> int:
    """Return the size that a ledger can reach once every field of its superseded keys is set."""
    ledger = without_left_places(ledger)
    latest = datetime.max.replace(tzinfo=UTC)
    noted: dict[str, Any] = {"at_once": True, "revoking": True, "disabled": True, "capped": True, "late_until": latest}
    if ledger.retirement.retire_when == "unused":
        noted |= {
            "postponed": 100,
            "usage": Decimal("1000000.000000"),
            "usage_since": latest,
        }
    superseded = tuple(
        key.model_copy(update={**noted, "overlap_ends": key.overlap_ends or key.revoke_at}) for key in ledger.superseded
    )
    return size(ledger.model_copy(update={"superseded": superseded, "late_writes_until": latest}))


def has_room_for(intent: Pending, ledger: Ledger, retirement: Retirement) -> bool:
    """Return whether a ledger has room for one more key in every state, with a reserve for failures."""
    key = MadeKey(
        hash="0" * 64,
        label="0" * 24,
        fingerprint="0" * 16,
        made_by=intent.run_id,
        connection=intent.connection,
        workspace_id="0" * 36,
    )
    # A create of unknown outcome needs no more room than the run's earlier ones, with which it shares an entry.
    ledger = ledger.resolved(ledger.unresolved_with(intent))
    created = ledger.intended(intent, "i" * INSTALLATION_LENGTH).created(key).publishing(timedelta(minutes=15))
    at = intent.intended_at
    places = created.where_pending()
    published = created.published(intent.run_id, places, at, at, retirement, late_until=at, inherits=True)
    return max(largest_size(created), largest_size(published)) + RESERVE_BYTES <= MAX_LEDGER_BYTES


def intent_of(
    rotation: Rotation, run_id: UUID, places: Mapping[str, str], now: datetime, terms: Terms, budget: Budget | None
) -> Pending:
    """Return the ledger entry that announces the creation of a key.

    Args:
        rotation: The rotation.
        run_id: The run that creates it.
        places: Where each destination points.
        now: The current time, UTC.
        terms: The key's terms.
        budget: The carried budget, if any.
    """
    return Pending(
        run_id=run_id,
        connection=rotation.connection,
        workspace_id=terms.workspace_id,
        destinations=tuple(rotation.destinations),
        places=kept_places(rotation.destinations, places),
        intended_at=now,
        terms=terms,
        budget=budget,
    )


def has_room_for_next(
    ledger: Ledger, rotation: Rotation, run_id: UUID, places: Mapping[str, str], now: datetime
) -> bool:
    """Return whether a ledger has room for the rotation's next key, created by a run now."""
    intent = intent_of(rotation, run_id, places, now, rotation.key.terms(now), None)
    return has_room_for(intent, ledger, rotation.retirement)
