"""The states of a key in the ledger, and the transitions between them.

`docs/` shows this table as a diagram, which a test compares; the simulation checks each write of a ledger against it.
"""

from __future__ import annotations

from enum import StrEnum

from tasks.model.ledger import Ledger
from tasks.model.records import Superseded


class KeyState(StrEnum):
    """The state of a key."""

    INTENDED = "intended"
    UNRESOLVED = "unresolved"
    CREATED = "created"
    CURRENT = "current"
    SUPERSEDED = "superseded"
    REVOKING = "revoking"
    DISABLED = "disabled"
    FORGOTTEN = "forgotten"


TRANSITIONS: dict[tuple[KeyState | None, KeyState], str] = {
    (None, KeyState.INTENDED): "a rotation begins",
    (None, KeyState.CURRENT): "adopted",
    (None, KeyState.SUPERSEDED): "found again by its marker",
    (KeyState.INTENDED, KeyState.CREATED): "created at OpenRouter",
    (KeyState.INTENDED, KeyState.UNRESOLVED): "not answered, and not found by its marker",
    (KeyState.INTENDED, KeyState.FORGOTTEN): "refused, found by its marker and deleted, or written off",
    (KeyState.UNRESOLVED, KeyState.FORGOTTEN): "turned up and deleted, certainly never made, or written off",
    (KeyState.CREATED, KeyState.CURRENT): "verified, published everywhere and read back",
    (KeyState.CREATED, KeyState.SUPERSEDED): "given up by a later run",
    (KeyState.CURRENT, KeyState.SUPERSEDED): "the next key was published, or the rotation removed",
    (KeyState.CURRENT, KeyState.FORGOTTEN): "the rotation was removed and the key kept",
    (KeyState.SUPERSEDED, KeyState.REVOKING): "its overlap ended, or an emergency ended it",
    (KeyState.SUPERSEDED, KeyState.CURRENT): "restored",
    (KeyState.SUPERSEDED, KeyState.FORGOTTEN): "written off",
    (KeyState.REVOKING, KeyState.DISABLED): "disabled, and may still be restored",
    (KeyState.REVOKING, KeyState.FORGOTTEN): "revoked, or written off",
    (KeyState.DISABLED, KeyState.REVOKING): "its time to be restored ended",
    (KeyState.DISABLED, KeyState.SUPERSEDED): "enabled again, to be restored",
    (KeyState.DISABLED, KeyState.FORGOTTEN): "written off",
}
"""The permitted transitions and their causes; the state `None` means that the key is not in the ledger yet."""


def states(ledger: Ledger) -> dict[str, KeyState]:
    """Return the state of each key in a ledger by its hash; by flow run and time if the hash is unknown."""
    found = {f"{entry.run_id} at {entry.since}": KeyState.UNRESOLVED for entry in ledger.unresolved}
    if ledger.pending is not None:
        key = ledger.pending.key
        intent = f"{ledger.pending.run_id} at {ledger.pending.intended_at}"
        found[key.hash if key else intent] = KeyState.CREATED if key else KeyState.INTENDED
    if ledger.current is not None:
        found[ledger.current.hash] = KeyState.CURRENT
    for former in ledger.superseded:
        found[former.hash] = state_of(former)
    return found


def state_of(former: Superseded) -> KeyState:
    """Return the state of a superseded key."""
    if former.revoking:
        return KeyState.REVOKING
    return KeyState.DISABLED if former.disabled else KeyState.SUPERSEDED


def steps_between(before: Ledger, after: Ledger) -> set[tuple[KeyState | None, KeyState]]:
    """Return the state changes from one ledger to the next."""
    was, now = states(before), states(after)
    steps = {(was.get(key), state) for key, state in now.items() if was.get(key) is not state}
    steps |= {(state, KeyState.FORGOTTEN) for key, state in was.items() if key not in now}
    if before.pending and after.pending and before.pending.key is None and after.pending.key:
        # The same key under two ids: before its creation by its run, then by its hash.
        steps -= {(KeyState.INTENDED, KeyState.FORGOTTEN), (None, KeyState.CREATED)}
        steps.add((KeyState.INTENDED, KeyState.CREATED))
    return steps
