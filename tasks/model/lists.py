"""Pure decisions about the lists of an account that name keys by their hashes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tasks.model.ledger import Ledger
from tasks.model.records import Superseded


def predecessors_of(ledger: Ledger, successor: str) -> set[str]:
    """Return the hashes of the keys whose places in lists a successor takes.

    Those are the current key and, where that took over the places of its own predecessors, those that are still alive:
    it may have lost a place to somebody who wrote at the same moment. Without a current key they are the keys that were
    found again after the ledger was lost.

    Args:
        ledger: The rotation's ledger.
        successor: The successor's hash.
    """
    current = ledger.current
    if current is None:
        former = {key.hash for key in ledger.superseded if not key.fingerprint}
    else:
        former = {current.hash} | ({key.hash for key in ledger.superseded if key.since} if current.inherits else set())
    return former - {successor}


def successor_of(ledger: Ledger, key: Superseded, workspace_id: str | None) -> str | None:
    """Return the hash that takes the place of a superseded key in a list; `None` where none is to.

    Args:
        ledger: The rotation's ledger.
        key: The superseded key.
        workspace_id: The workspace that the list is for; `None` for all.
    """
    current = ledger.current
    # A key that was given up, or found again, never was the one that consumers were to use.
    if current is None or not current.inherits or key.since is None or current.connection != key.connection:
        return None
    served = workspace_id is None or current.workspace_id in (None, workspace_id)
    return current.hash if served else None


def replaced(hashes: Sequence[str], out: Collection[str], into: str | None) -> tuple[str, ...]:
    """Return a list without some keys and with another one; what else it names stays, in its order."""
    kept = tuple(one for one in dict.fromkeys(hashes) if one not in out or one == into)
    return kept if into is None or into in kept else (*kept, into)
