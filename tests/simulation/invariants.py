"""The invariants of the design, as checks on the model."""

from __future__ import annotations

from collections.abc import Collection

from tasks.model.keys import read_marker
from tasks.model.ledger import Ledger
from tasks.model.rotation import Rotation
from tests.simulation.promises import promise
from tests.simulation.world.model import Model


def check_serving(model: Model, rotation: Rotation, serving: Collection[str], effect: str) -> None:
    """I1: a destination that has held a working key still holds one, unless a person has changed it since.

    Args:
        model: The model world.
        rotation: The rotation whose destinations are checked.
        serving: The destinations that must hold a working key.
        effect: The latest effect, for the message.
    """
    for name in serving:
        if name in rotation.destinations:
            works = model.serves(model.places[name].content)
            promise(works, f"I1: {name} holds no working key any more after: {effect}")


def check_no_orphan(model: Model, rotation: Rotation, out_of_sight: Collection[str] = ()) -> None:
    """I2: every key with this rotation's marker is current or superseded, and nothing is overdue or pending.

    Args:
        model: The model world.
        rotation: The rotation whose keys are checked.
        out_of_sight: Keys that no run can find.
    """
    ledger = _ledger(model, rotation)
    recorded = ({ledger.current.hash} if ledger.current else set()) | {key.hash for key in ledger.superseded}

    orphans = _marked(model, rotation) - recorded - set(out_of_sight)
    promise(not orphans, f"I2: orphans {orphans}")
    promise(not ledger.due(model.time), "I2: overdue keys are still in the ledger")
    promise(ledger.pending is None, "I2: something is still pending")


def check_agreement(model: Model, rotation: Rotation) -> None:
    """After a successful run every destination holds the current key, and that key works."""
    current = _ledger(model, rotation).current
    key = model.keys.get(current.hash) if current else None
    promise(key is not None, "there is no current key after a successful run")
    held = {model.places[name].content for name in rotation.destinations}
    promise(held == {key and key.secret}, "a destination does not hold the current key after a successful run")
    promise(key is not None and model.works(key.secret), "the current key does not work after a successful run")


def check_no_older_key(model: Model, rotation: Rotation, out_of_sight: Collection[str] = ()) -> None:
    """After an emergency, the current key is the only live key of this rotation."""
    current = _ledger(model, rotation).current
    older = _marked(model, rotation) - ({current.hash} if current else set())
    promise(not older - set(out_of_sight), "an emergency left older keys alive")


def _ledger(model: Model, rotation: Rotation) -> Ledger:
    ledger = model.ledger(rotation.name)
    promise(ledger is not None, "there is no ledger after a successful run")
    return ledger or Ledger()


def _marked(model: Model, rotation: Rotation) -> set[str]:
    return {key.hash for key in model.keys.values() if (read_marker(key.request.name) or ("",))[0] == rotation.name}
