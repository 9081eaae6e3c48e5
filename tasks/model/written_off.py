"""Keys that can no longer be revoked, and were therefore removed from the ledger by a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from tasks.model.times import Moment

if TYPE_CHECKING:
    from tasks.model.ledger import Ledger

MAX_WRITTEN_OFF = 3
"""How many entries the ledger keeps, the newest ones. Each one is also in an event."""
MAX_REASON = 120
"""How many characters of the reason are kept."""


class WrittenOff(BaseModel):
    """A key that was written off, and why.

    For a create of unknown outcome, `label` is the run's id and `hash` is empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str = ""
    label: str
    connection: str
    reason: str
    at: Moment
    by: UUID

    def as_payload(self) -> dict[str, str]:
        """Return the entry as the payload of an event."""
        return {
            "key_label": self.label,
            "key_hash": self.hash,
            "connection": self.connection,
            "reason": self.reason,
        }


def write_off(ledger: Ledger, entry: WrittenOff, remembered: int = MAX_WRITTEN_OFF) -> Ledger:
    """Return a ledger without a key that can no longer be revoked.

    Args:
        ledger: The ledger.
        entry: The key to write off: a superseded one by its hash, or a create of unknown outcome by its run.
        remembered: How many such entries the ledger keeps, this one included.
    """
    pending = ledger.pending
    if pending and pending.key is None and not entry.hash and str(pending.run_id) == entry.label:
        pending = None
    return ledger.model_copy(
        update={
            "pending": pending,
            "superseded": tuple(key for key in ledger.superseded if key.hash != entry.hash),
            "unresolved": tuple(lost for lost in ledger.unresolved if entry.hash or str(lost.run_id) != entry.label),
            "written_off": (*ledger.written_off, entry)[-remembered:] if remembered else (),
        }
    )


def searchable_text(value: Any) -> str:
    """Return a stored ledger, even an unreadable one, as text to search for keys, without those written off."""
    if isinstance(value, Mapping):
        value = {name: part for name, part in value.items() if name != "written_off"}
    return json.dumps(value)
