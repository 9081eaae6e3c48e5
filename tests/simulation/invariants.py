"""The invariants of the design, as checks on the model."""

from __future__ import annotations

from collections.abc import Collection

from tasks.rotation import Rotation, read_marker
from tests.simulation.model import Model


def check_no_outage(model: Model, rotation: Rotation, made: set[str], lost: set[str]) -> None:
    """I1: a destination that holds one of our keys holds one that works, unless a person deleted that key."""
    for name in rotation.destinations:
        content = model.places[name].content
        if content in made and content not in lost:
            assert model.works(content), f"I1: {name} holds a key that does not work"


def check_no_orphan(model: Model, rotation: Rotation, out_of_sight: Collection[str] = ()) -> None:
    """I2: the live keys with this rotation's marker are those that the ledger explains, and none is overdue."""
    ledger = model.ledger(rotation.name)
    assert ledger is not None
    marked = {key.hash for key in model.keys.values() if (read_marker(key.request.name) or ("",))[0] == rotation.name}
    explained = ({ledger.current.hash} if ledger.current else set()) | {key.hash for key in ledger.superseded}

    orphans = marked - explained - set(out_of_sight)
    assert not orphans, f"I2: orphans {orphans}"
    assert not ledger.due(model.time), "I2: overdue keys are still in the ledger"
    assert ledger.pending is None, "I2: something is still pending"


def check_agreement(model: Model, rotation: Rotation) -> None:
    """After a successful run every destination holds the current key, and that key works."""
    ledger = model.ledger(rotation.name)
    assert ledger is not None
    assert ledger.current is not None
    current = model.keys[ledger.current.hash]
    held = {model.places[name].content for name in rotation.destinations}
    assert held == {current.secret}, "a destination does not hold the current key after a successful run"
    assert model.works(current.secret), "the current key does not work after a successful run"


def check_no_older_key(model: Model, rotation: Rotation, out_of_sight: Collection[str] = ()) -> None:
    """After an emergency the current key is the only one of this rotation that is alive."""
    ledger = model.ledger(rotation.name)
    assert ledger is not None
    older = {key.hash for key in model.keys.values() if (read_marker(key.request.name) or ("",))[0] == rotation.name}
    older -= {ledger.current.hash} if ledger.current else set()
    assert not older - set(out_of_sight), "an emergency left older keys alive"
