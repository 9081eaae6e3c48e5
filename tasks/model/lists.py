"""Pure decisions about the account's lists of keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tasks.model.ledger import Ledger
from tasks.model.records import Superseded


def predecessors_of(ledger: Ledger, successor: str, *, inherit: bool) -> set[str]:
    """Return the hashes of the keys that a successor replaces in lists.

    Those are the current key and, if the successor inherits, its predecessors as long as they are alive: a concurrent
    writer may have dropped the current key from a list, or it was made before `inherit` was switched on. Without a
    current key, they are the keys found again after the ledger was lost.

    Args:
        ledger: The rotation's ledger.
        successor: The successor's hash.
        inherit: Whether the successor inherits.
    """
    current = ledger.current
    if current is None:
        former = {key.hash for key in ledger.superseded if not key.fingerprint}
    else:
        former = {current.hash} | ({key.hash for key in ledger.superseded if key.since} if inherit else set())
    return former - {successor}


def successor_of(ledger: Ledger, key: Superseded, workspace_id: str | None) -> str | None:
    """Return the hash of the key that replaces a superseded key in a list; `None` if none does.

    Args:
        ledger: The rotation's ledger.
        key: The superseded key.
        workspace_id: The list's workspace; `None` if it is for all.
    """
    current = ledger.current
    # A key without `since`, given up or found again, never was the current one.
    if current is None or not current.inherits or key.since is None or current.connection != key.connection:
        return None
    served = workspace_id is None or current.workspace_id in (None, workspace_id)
    return current.hash if served else None


def replaced(hashes: Sequence[str], out: Collection[str], into: str | None) -> tuple[str, ...]:
    """Return a list of hashes without some keys and with another one; the rest keeps its order."""
    kept = tuple(one for one in dict.fromkeys(hashes) if one not in out or one == into)
    return kept if into is None or into in kept else (*kept, into)
