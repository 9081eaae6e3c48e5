"""Faults beyond one failed call: edits by hand, clock jumps, a lost ledger, and runs or writes that continue late."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from blocks.errors import OtherRunError
from tasks.model.decisions import Identity
from tasks.model.rotation import Rotation
from tests.simulation.invariants import check_agreement, check_no_orphan
from tests.simulation.runs import Ended, play, run_protocol, run_restore, run_retire
from tests.simulation.watched_rotation import WatchedRotation
from tests.simulation.world.fates import Fate
from tests.simulation.world.process import Process

VAULT, SECRET = "vault-secret/checkout", "secret/checkout"


@pytest.fixture
def watched(rotation: Rotation) -> WatchedRotation:
    """Return a rotation that has run twice, so that its first key is in its overlap."""
    watched = WatchedRotation(rotation)
    assert watched.rotate().succeeded
    assert watched.rotate().succeeded
    return watched


def identity(watched: WatchedRotation) -> Identity:
    """Return the identity of a new run."""
    return Identity(uuid4(), watched.model.time)


def retire(watched: WatchedRotation) -> object:
    """Run the retirement now."""
    return play(run_retire(watched.model, watched.rotation.name, identity(watched)))


def test_a_destination_changed_by_hand_gets_the_next_key(watched: WatchedRotation) -> None:
    """The next rotation replaces what a person wrote into a destination."""
    watched.put_by_hand(SECRET, "by hand")

    assert watched.rotate().succeeded

    check_agreement(watched.model, watched.rotation)


def test_a_superseded_key_put_back_by_hand_is_not_revoked(watched: WatchedRotation) -> None:
    """A key that somebody put back into a destination outlives its overlap until it is replaced there."""
    old = watched.model.places[VAULT].versions[0]
    watched.put_by_hand(VAULT, old)
    watched.model.time += timedelta(days=2)

    retire(watched)
    alive = watched.model.works(old)
    watched.rotate()

    assert alive
    assert not watched.model.works(old)
    check_no_orphan(watched.model, watched.rotation)


@pytest.mark.parametrize("which", ["current", "superseded"])
def test_a_key_deleted_by_hand_does_not_stop_the_rotation(watched: WatchedRotation, which: str) -> None:
    """After a person has deleted a key at OpenRouter, the next rotation works and the ledger forgets the dead key."""
    ledger = watched.model.ledger("checkout")
    assert ledger is not None
    assert ledger.current is not None
    dead = ledger.current if which == "current" else ledger.superseded[0]
    watched.model.watch = lambda _effect: None  # the person has caused the outage, if any
    del watched.model.keys[dead.hash]

    assert watched.rotate().succeeded
    watched.model.time += timedelta(days=2)
    assert watched.rotate().succeeded

    check_no_orphan(watched.model, watched.rotation)


def test_a_deleted_ledger_is_made_again_from_the_markers(watched: WatchedRotation) -> None:
    """Keys of the lost ledger are found by their markers, and revoked after one more overlap."""
    watched.model.variables.clear()

    assert watched.rotate().succeeded
    alive = len(watched.model.keys)
    watched.model.time += timedelta(days=2)
    retire(watched)

    assert alive == 3
    assert len(watched.model.keys) == 1
    check_no_orphan(watched.model, watched.rotation)


def test_a_retirement_without_a_current_key_revokes_nothing(rotation: Rotation) -> None:
    """Without a current key in the ledger, it is unknown which keys consumers read, so none may be revoked."""
    watched = WatchedRotation(rotation.model_copy(update={"overlap": timedelta(0)}))
    assert watched.rotate().succeeded
    watched.model.variables.clear()
    watched.model.fate = lambda effect: Fate.FAILS if effect.startswith("create") else Fate.WORKS
    assert not watched.rotate().succeeded

    watched.calm()
    retire(watched)

    assert watched.model.works(watched.model.places[VAULT].content)


def test_a_changed_connection_leaves_nothing_behind(watched: WatchedRotation) -> None:
    """Superseded keys are revoked with the connection that made them, after the rotation has moved to another."""
    watched.model.connections["other"] = "account-2"
    watched.rotation = watched.rotation.model_copy(update={"connection": "other"})

    assert watched.rotate().succeeded
    watched.model.time += timedelta(days=2)
    assert watched.rotate().succeeded

    assert {key.account for key in watched.model.keys.values()} == {"account-2"}
    check_no_orphan(watched.model, watched.rotation)


def test_an_exchanged_account_is_noticed_before_a_key_is_forgotten(watched: WatchedRotation) -> None:
    """A 404 from another account does not prove that a key is gone, so runs fail until the right account is back."""
    watched.model.connections["openrouter"] = "account-2"
    watched.model.time += timedelta(days=2)

    ended = watched.rotate()
    watched.model.connections["openrouter"] = "account-1"
    healed = watched.rotate()

    assert ended.error is not None
    assert "another account" in str(ended.error)
    assert healed.succeeded
    check_agreement(watched.model, watched.rotation)


def test_a_new_destination_is_served_and_a_removed_one_left_alone(watched: WatchedRotation) -> None:
    """A destination taken out of the rotation is not written any more; one put in gets the next key."""
    watched.model.places["vault-secret/new"] = type(watched.model.places[VAULT])()
    watched.rotation = watched.rotation.model_copy(update={"destinations": [VAULT, "vault-secret/new"]})
    before = watched.model.places[SECRET].content

    assert watched.rotate().succeeded

    assert watched.model.places[SECRET].content == before
    check_agreement(watched.model, watched.rotation)


def test_a_superseded_key_put_into_a_new_destination_by_hand_is_not_revoked(watched: WatchedRotation) -> None:
    """The retirement also reads the deployment's new destinations, to which no run has published yet."""
    old = watched.model.places[VAULT].versions[0]
    watched.model.places["vault-secret/new"] = type(watched.model.places[VAULT])(versions=[old])
    watched.rotation = watched.rotation.model_copy(update={"destinations": [VAULT, SECRET, "vault-secret/new"]})
    watched.model.deployments[watched.rotation.name] = watched.rotation
    watched.model.time += timedelta(days=2)

    retire(watched)

    assert watched.model.works(old)


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400)])
def test_a_clock_that_jumps_does_not_stop_the_rotation(watched: WatchedRotation, jump: timedelta) -> None:
    """A new run rotates whatever the clock says, and every destination holds a working key throughout."""
    watched.model.time += jump
    for key in watched.model.keys.values():
        key.valid_from = min(key.valid_from, watched.model.time)

    assert watched.rotate().succeeded

    check_agreement(watched.model, watched.rotation)


def test_a_revoked_management_key_changes_nothing(watched: WatchedRotation) -> None:
    """Without a valid management key a run fails, and the published key keeps working."""
    watched.model.revoked_accounts.add("account-1")
    before = dict(watched.model.keys)

    ended = watched.rotate()

    assert ended.error is not None
    assert watched.model.keys == before
    check_agreement(watched.model, watched.rotation)


def test_a_ledger_without_room_refuses_before_anything_is_made(rotation: Rotation) -> None:
    """With too many keys in their overlap, a run is refused before it creates another one; an emergency still works."""
    watched = WatchedRotation(rotation.model_copy(update={"overlap": timedelta(days=365)}))
    ended = watched.rotate()
    while ended.succeeded:
        made = set(watched.model.keys)
        ended = watched.rotate()
    assert set(watched.model.keys) == made

    emergency = watched.rotate(emergency=True)

    assert "no room for another key" in str(ended.error)
    assert len(made) >= 8
    assert emergency.succeeded
    assert len(watched.model.keys) == 1


def test_a_create_that_could_not_be_settled_is_not_made_again(rotation: Rotation) -> None:
    """If the ledger cannot be written after an unanswered create, the run stops, and the next one finds the key."""
    watched = WatchedRotation(rotation)
    strikes = [("create the key", Fate.LATE), ("write the ledger", Fate.FAILS)]

    def fate(effect: str) -> Fate:
        return strikes.pop(0)[1] if strikes and effect.startswith(strikes[0][0]) else Fate.WORKS

    watched.model.fate = fate
    failed = watched.rotate()
    watched.calm()
    healed = watched.rotate()

    assert not failed.succeeded
    assert healed.succeeded
    check_no_orphan(watched.model, watched.rotation)


def strike(watched: WatchedRotation, *strikes: tuple[str, Fate]) -> None:
    """Plan faults in order: each one hits the first effect of its name after the fault before it."""
    left = list(strikes)

    def fate(effect: str) -> Fate:
        return left.pop(0)[1] if left and effect.startswith(left[0][0]) else Fate.WORKS

    watched.model.fate = fate


def test_a_late_write_of_a_key_given_up_in_an_emergency_is_kept_out(watched: WatchedRotation) -> None:
    """A retirement may delete a key that was given up, because a late write of it can no longer reach a destination."""
    strike(watched, (f"write {VAULT}", Fate.LATE), (f"read {VAULT}", Fate.FAILS))
    half_published = watched.rotate()
    strike(watched, (f"write {VAULT}", Fate.FORBIDDEN))
    emergency = watched.rotate(emergency=True)
    watched.model.fate = lambda _effect: Fate.WORKS

    retire(watched)
    watched.model.late_effects_happen()

    assert not half_published.succeeded
    assert not emergency.succeeded
    assert watched.model.works(watched.model.places[VAULT].content)


def test_a_key_is_not_discarded_before_its_late_write_is_kept_out(rotation: Rotation) -> None:
    """If the fence fails, the unpublished key stays alive, so a late write of it does no harm."""
    watched = WatchedRotation(rotation.model_copy(update={"destinations": [VAULT]}))
    assert watched.rotate().succeeded
    strike(watched, (f"write {VAULT}", Fate.LATE), (f"read {VAULT}", Fate.FAILS))
    unpublished = watched.rotate()
    strike(watched, (f"fence {VAULT}", Fate.FAILS))
    discarding = watched.rotate()
    watched.model.fate = lambda _effect: Fate.WORKS

    retire(watched)
    watched.model.late_effects_happen()

    assert not unpublished.succeeded
    assert not discarding.succeeded
    assert watched.model.works(watched.model.places[VAULT].content)


def test_a_key_whose_revocation_has_begun_is_not_brought_back(watched: WatchedRotation) -> None:
    """A retirement paused right before its delete does no harm later, because a restore refuses that key."""
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def stopped_before_the_delete(effect: str) -> None:
        if effect.startswith("delete a key") and not go_on.is_set():
            paused.set()
            await go_on.wait()

    async def both() -> tuple[Ended, Ended]:
        process = Process(watched.model, "late retirement")
        process.gate = stopped_before_the_delete
        late = asyncio.ensure_future(run_retire(watched.model, "checkout", identity(watched), process))
        await paused.wait()
        restored = await run_restore(watched.model, "checkout", identity(watched))
        go_on.set()
        return restored, await late

    watched.model.time += timedelta(days=2)
    watched.model.deployments["checkout"] = watched.rotation

    restored, late = play(both())

    assert "revocation of the key" in str(restored.error)
    assert late.succeeded
    check_agreement(watched.model, watched.rotation)


def test_a_key_that_was_made_after_another_run_has_taken_over_is_deleted_again(watched: WatchedRotation) -> None:
    """A run that was paused right before its create must delete its key itself: no other run would ever find it."""
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def stopped_before_the_create(effect: str) -> None:
        if effect.startswith("create the key") and not go_on.is_set():
            paused.set()
            await go_on.wait()

    async def both() -> Ended:
        process = Process(watched.model, "late run")
        process.gate = stopped_before_the_create
        late = asyncio.ensure_future(run_protocol(watched.model, watched.rotation, identity(watched), process))
        await paused.wait()
        await run_protocol(watched.model, watched.rotation, identity(watched))
        watched.model.time += timedelta(minutes=30)
        await run_retire(watched.model, "checkout", identity(watched))
        go_on.set()
        return await late

    ended = play(both())
    watched.model.time += timedelta(days=2)
    assert watched.rotate().succeeded

    assert isinstance(ended.error, OtherRunError)
    check_no_orphan(watched.model, watched.rotation)
