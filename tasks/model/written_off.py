"""Keys that nobody can revoke any more, and that a person has therefore taken out of the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from tasks.model.ledger import Ledger

MAX_WRITTEN_OFF = 3
"""How many of them the ledger remembers: the newest. The events tell of all."""
MAX_REASON = 120
"""How many characters of the reason are kept."""


class WrittenOff(BaseModel):
    """A key that was written off, and why.

    `label` is the run's id, and `hash` empty, where only a create is known whose outcome is not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str = ""
    label: str
    connection: str
    reason: str
    at: datetime
    by: UUID

    def told(self) -> dict[str, str]:
        """Say in an event what was written off, and why."""
        return {
            "key_label": self.label,
            "key_hash": self.hash,
            "connection": self.connection,
            "reason": self.reason,
        }


def write_off(ledger: Ledger, entry: WrittenOff, remembered: int = MAX_WRITTEN_OFF) -> Ledger:
    """Take a key out of a ledger that nobody can revoke any more.

    Args:
        ledger: The ledger.
        entry: What is written off: a superseded key by its hash, or a create of unknown outcome by its run.
        remembered: How many of such entries the ledger is to remember, this one included.

    Returns:
        The ledger without the key.
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


def as_explanation(value: Any) -> str:
    """Spell a stored ledger for a search of the keys that it explains, which those that were written off are not.

    Args:
        value: The ledger as it is stored; one that cannot be read speaks for its keys too.

    Returns:
        The ledger as text.
    """
    if isinstance(value, Mapping):
        value = {name: part for name, part in value.items() if name != "written_off"}
    return json.dumps(value)
