"""Changes that a person makes between two runs, the first of which has left something behind."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from tasks.model.rotation import Rotation
from tests.simulation.invariants import check_agreement, check_no_orphan
from tests.simulation.watched_rotation import WatchedRotation
from tests.simulation.world.fates import Fate

STRIKES = {
    "a create that was not answered": ("create the key", Fate.ANSWER_LOST),
    "a run that died after the create": ("create the key", Fate.KILLED_AFTER),
    "a half-published key": ("write secret", Fate.FAILS),
    "a key that no destination holds": ("use the key", Fate.FAILS),
}


def change(watched: WatchedRotation, **changes: Any) -> None:
    """Change the rotation, as a person does."""
    watched.rotation = watched.rotation.model_copy(update=changes)
    watched.model.deployments[watched.rotation.name] = watched.rotation


def left_over(rotation: Rotation, what: str) -> WatchedRotation:
    """A rotation whose second run has left something behind."""
    watched = WatchedRotation(rotation)
    watched.model.connections = {"openrouter": "account-1", "other": "account-2"}
    assert watched.rotate().succeeded
    struck, fate = STRIKES[what]
    # The search for a key whose create got no answer fails, too.
    watched.model.fate = lambda effect: (
        fate if effect.startswith(struck) else Fate.FAILS if effect.startswith("list the keys") else Fate.WORKS
    )
    assert not watched.rotate().succeeded
    watched.calm()
    return watched


@pytest.mark.parametrize("emergency", [False, True], ids=["scheduled", "emergency"])
@pytest.mark.parametrize("what", STRIKES)
def test_a_connection_that_was_left_because_its_management_key_is_dead_stops_nothing(
    rotation: Rotation, what: str, emergency: bool
) -> None:
    """The rotation goes on with the connection that it has now; what is left in the former one is told."""
    watched = left_over(rotation, what)
    watched.model.revoked_accounts.add("account-1")
    change(watched, connection="other")

    ended = watched.rotate(emergency=emergency)

    check_agreement(watched.model, watched.rotation)
    # Only what could not be revoked there may keep such a run from being called completed.
    assert ended.succeeded or "OpenRouter does not accept" in str(ended.error)


def test_a_rotation_that_inherits_goes_on_without_the_connection_that_it_has_left(rotation: Rotation) -> None:
    """What the ledger remembers of the former key's settings is taken in its place."""
    watched = WatchedRotation(rotation.model_copy(update={"key": rotation.key.model_copy(update={"inherit": True})}))
    watched.model.connections = {"openrouter": "account-1", "other": "account-2"}
    assert watched.rotate().succeeded
    watched.model.revoked_accounts.add("account-1")
    change(watched, connection="other")

    assert watched.rotate().succeeded

    check_agreement(watched.model, watched.rotation)


def test_a_connection_that_got_another_name_leaves_no_orphan(rotation: Rotation) -> None:
    """What a run may have left behind is looked for with the rotation's own connection, too."""
    watched = left_over(rotation, "a run that died after the create")
    watched.model.connections = {"renamed": "account-1"}
    change(watched, connection="renamed", overlap=timedelta(days=7))

    assert watched.rotate().succeeded

    ledger = watched.model.ledger("checkout")
    assert ledger is not None
    assert set(watched.model.keys) == ledger.hashes()


def test_keys_of_another_workspace_are_found_after_the_ledger_was_lost(rotation: Rotation) -> None:
    """The rotation may have moved to another workspace since; its old keys end all the same."""
    watched = WatchedRotation(rotation)
    change(watched, key=rotation.key.model_copy(update={"workspace_id": "ws-1"}))
    assert watched.rotate().succeeded
    watched.model.variables.clear()
    change(watched, key=rotation.key.model_copy(update={"workspace_id": "ws-2"}))

    assert watched.rotate().succeeded
    watched.model.time += timedelta(days=2)
    assert watched.rotate(uuid4()).succeeded

    check_no_orphan(watched.model, watched.rotation)
    assert "ws-1" not in {key.workspace for key in watched.model.keys.values()}
