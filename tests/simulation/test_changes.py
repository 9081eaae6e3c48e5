"""A person changes the rotation between two runs, in most tests after one that left something behind."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from tasks.model.decisions import Identity
from tasks.model.rotation import Rotation
from tests.simulation.invariants import check_agreement, check_no_orphan
from tests.simulation.runs import play, run_protocol
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
    """Return a rotation whose second run failed and left this behind."""
    watched = WatchedRotation(rotation)
    watched.model.connections = {"openrouter": "account-1", "other": "account-2"}
    assert watched.rotate().succeeded
    struck, fate = STRIKES[what]
    # Also fail the search after a create without an answer, so that the run cannot settle it.
    watched.model.fate = lambda effect: (
        fate if effect.startswith(struck) else Fate.FAILS if effect.startswith("list the keys") else Fate.WORKS
    )
    assert not watched.rotate().succeeded
    watched.calm()
    return watched


@pytest.mark.parametrize("emergency", [False, True], ids=["scheduled", "emergency"])
@pytest.mark.parametrize("what", STRIKES)
def test_a_connection_whose_management_key_is_dead_can_be_left(rotation: Rotation, what: str, emergency: bool) -> None:
    """The rotation continues with its new connection, and fails at most because of a key left in the former account."""
    watched = left_over(rotation, what)
    watched.model.revoked_accounts.add("account-1")
    change(watched, connection="other")

    ended = watched.rotate(emergency=emergency)

    check_agreement(watched.model, watched.rotation)
    # The run may fail only because it cannot revoke keys in the former account.
    assert ended.succeeded or "OpenRouter does not accept" in str(ended.error)


def test_a_rotation_that_inherits_goes_on_without_the_connection_that_it_has_left(rotation: Rotation) -> None:
    """The former key cannot be read, so its settings come from the ledger."""
    watched = WatchedRotation(rotation.model_copy(update={"key": rotation.key.model_copy(update={"inherit": True})}))
    watched.model.connections = {"openrouter": "account-1", "other": "account-2"}
    assert watched.rotate().succeeded
    watched.model.revoked_accounts.add("account-1")
    change(watched, connection="other")

    assert watched.rotate().succeeded

    check_agreement(watched.model, watched.rotation)


def test_a_connection_that_got_another_name_leaves_no_orphan(rotation: Rotation) -> None:
    """The key of an interrupted run is also searched for with the rotation's present connection."""
    watched = left_over(rotation, "a run that died after the create")
    watched.model.connections = {"renamed": "account-1"}
    change(watched, connection="renamed", overlap=timedelta(days=7))

    assert watched.rotate().succeeded

    ledger = watched.model.ledger("checkout")
    assert ledger is not None
    assert set(watched.model.keys) == ledger.hashes()


def test_keys_of_another_workspace_are_found_after_the_ledger_was_lost(rotation: Rotation) -> None:
    """The rotation may have moved to another workspace since; its keys in the former one must still be revoked."""
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


@pytest.mark.parametrize("emergency", [False, True], ids=["scheduled", "emergency"])
def test_a_time_without_a_zone_in_a_ledger_is_told_and_concerns_no_other_rotation(
    rotation: Rotation, emergency: bool
) -> None:
    """Given an edit of a ledger by hand, when rotations run, then one says where, and the other one works as before."""
    watched = WatchedRotation(rotation)
    model = watched.model
    assert watched.rotate().succeeded
    assert watched.rotate().succeeded
    value = deepcopy(model.terms(rotation.name)[0].value)
    value["superseded"][0]["revoke_at"] = "2026-12-24T00:00:00"
    model.put_ledger(rotation.name, value)
    keys, other = set(model.keys), rotation.model_copy(update={"name": "billing"})
    model.deployments["billing"] = other

    ended = watched.rotate(emergency=emergency)

    assert "cannot be read (at superseded.0.revoke_at)" in str(ended.error)
    assert set(model.keys) == keys
    assert play(run_protocol(model, other, Identity(uuid4(), model.time))).succeeded
