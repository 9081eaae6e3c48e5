"""A Retry of a run that is no longer the latest one."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock
from uuid import uuid4

import pytest

from blocks.errors import DestinationError
from flows.rotate import follow_protocol
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.steps import PLAIN
from tests.tasks.conftest import FakeWorld


async def test_a_retried_emergency_ends_what_it_was_to_end(world: FakeWorld) -> None:
    """Since it failed, a scheduled run has given the stolen key an overlap; the Retry revokes that key at once."""
    await world.rotate()
    stolen = (await world.held()).hash
    again = await world.failed_at("POST", "/keys$", 403, emergency=True)
    world.app.state.faults.clear()
    world.later(minutes=5)
    await world.rotate()

    await world.rotate(**again)

    assert stolen not in world.openrouter.keys
    assert [key.hash for key in world.openrouter.live_keys()] == [(await world.held()).hash]


async def test_a_retried_emergency_revokes_the_stolen_key_although_a_later_run_has_rotated(world: FakeWorld) -> None:
    """Given that neither the emergency nor a later run could delete that key, the Retry does, and ends no other."""
    await world.rotate()
    stolen = await world.held()
    again = await world.failed_at("DELETE", "/keys/", 503, emergency=True)
    own = (await world.held()).hash
    world.later(minutes=1)
    await world.failure(world.rotate())
    world.app.state.faults.clear()

    said = await world.rotate(**again)

    current = await world.held()
    assert [key.hash for key in world.openrouter.live_keys()] == [own, current.hash]
    assert said == (
        f"Nothing to publish: a later run has already rotated; revoked {stolen.label}. "
        f"The key {current.label} is the current one."
    )


async def test_a_retry_schedules_what_a_later_run_that_was_killed_has_not(world: FakeWorld) -> None:
    """Given a later run that died right after its new key became the current one, the former key's end is planned."""
    await world.rotate()
    again = await world.failed_at("POST", "/keys$", 403)
    world.app.state.faults.clear()
    world.later(minutes=1)
    emit = world.emit

    async def die(event: Event, rotation: str, **payload: str) -> None:
        if event is Event.ROTATION_COMPLETED:
            raise KeyboardInterrupt
        await emit(event, rotation, **payload)

    with mock.patch.object(world, "emit", die), pytest.raises(KeyboardInterrupt):
        await world.rotate()

    await world.rotate(**again)

    assert world.retirements == world.ledger.due_times() != []


async def test_a_retry_of_a_finished_run_tells_of_the_one_that_is_not(world: FakeWorld) -> None:
    """The Retry's own rotation is complete, but its message names the unfinished one that another run has begun."""
    first, second = uuid4(), uuid4()
    await world.rotate(run_id=first)
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await world.failure(world.rotate(run_id=second))
    world.app.state.faults.clear()

    said = await world.rotate(run_id=first, attempt=2)

    assert f"the later rotation by run {second} is unfinished" in said


@pytest.mark.parametrize("emergency", [False, True])
@pytest.mark.parametrize("knows", [False, True], ids=["Prefect has forgotten that it completed", "Prefect knows"])
async def test_a_retry_of_a_run_that_completed_makes_no_key_and_ends_none_once_its_own_is_gone(
    world: FakeWorld, emergency: bool, knows: bool
) -> None:
    """Given a completed run whose key was superseded and revoked long ago, the Retry changes nothing."""
    await world.rotate()
    run_id, first_started = uuid4(), world.time
    world.later(seconds=1)
    await world.rotate(run_id=run_id, emergency=emergency)
    world.later(days=1)
    await world.rotate()
    world.later(days=2)
    await world.retire()
    await world.rotate()
    before = world.everything()

    said = await world.rotate(
        run_id=run_id, first_started=first_started, attempt=2, emergency=emergency, completed=knows
    )

    why = "this run has completed before" if knows else "a later run has already rotated"
    assert said == f"Nothing to do: {why}. The key {(await world.held()).label} is the current one."
    assert world.everything() == before


async def test_a_retry_of_an_emergency_whose_last_revocation_failed_ends_no_key_before_its_time(
    world: FakeWorld,
) -> None:
    """Given an emergency that failed after publishing, and later runs that did its work, the Retry does nothing."""
    await world.rotate()
    run_id, first_started = uuid4(), world.time
    world.later(seconds=1)
    world.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await world.failure(world.rotate(run_id=run_id, emergency=True))
    world.app.state.faults.clear()
    for _ in range(3):
        world.later(days=2)
        await world.rotate()
    before = world.everything()

    said = await world.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True)

    assert said.startswith("Nothing to do: a later run has already rotated.")
    assert world.everything() == before


async def test_a_retry_of_a_completed_run_makes_no_key_after_the_clock_was_set_back(world: FakeWorld) -> None:
    """Given that the times in the ledger are unreliable, Prefect's own record of the run decides."""
    run_id, first_started = uuid4(), world.time
    await world.rotate(run_id=run_id)
    world.later(days=-3)
    await world.rotate()
    world.later(days=2)
    await world.retire()
    before = world.everything()

    said = await world.rotate(run_id=run_id, first_started=first_started, attempt=2, completed=True)

    assert said.startswith("Nothing to do: this run has completed before.")
    assert world.everything() == before


async def test_a_retry_of_a_completed_run_says_that_there_is_no_key_any_more(world: FakeWorld) -> None:
    """Given a rotation without a ledger, the Retry of a completed run does not start a new one."""
    run_id = uuid4()
    await world.rotate(run_id=run_id)
    world.store.value = None
    before = world.everything()

    said = await world.rotate(run_id=run_id, attempt=2, completed=True)

    assert said == (
        "Nothing to do: this run has completed before. There is no current key now; to make one, start a new run."
    )
    assert world.everything() == before


async def test_a_retry_does_not_say_that_a_key_is_live_where_it_is_not(world: FakeWorld) -> None:
    """Given that a person has put another value into the destination, the message of the Retry names it."""
    run_id = uuid4()
    await world.rotate(run_id=run_id)
    label = (await world.held()).label
    await world.block.awrite_secret(b"by hand")

    said = await world.rotate(run_id=run_id, attempt=2, completed=True)

    assert said == (
        f"Already rotated: the key {label} is the current one, but it is not in vault-secret/checkout: start a new "
        "run; no superseded keys."
    )


@pytest.mark.parametrize("knows", [False, True], ids=["Prefect has forgotten that it completed", "Prefect knows"])
async def test_a_retry_of_an_emergency_ends_no_key_that_was_superseded_after_it(world: FakeWorld, knows: bool) -> None:
    """Given that the emergency's key was replaced by a restore, it keeps its overlap."""
    run_id, first_started = uuid4(), world.time
    await world.rotate()
    await world.rotate(run_id=run_id, emergency=True)
    world.later(days=1)
    await world.rotate()
    replaced = await world.held()
    await world.restore()
    before = world.ledger.superseded

    said = await world.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True, completed=knows)

    assert said.startswith(f"Already rotated: the key {(await world.held()).label} is the current one")
    assert world.openrouter.is_live(replaced.secret)
    assert world.ledger.superseded == before


@pytest.mark.parametrize("emergency", [False, True])
async def test_a_retry_of_a_completed_run_says_where_its_key_is_not(world: FakeWorld, emergency: bool) -> None:
    """Given a destination that a person has changed since, no Retry says that the key is live there."""
    run_id = uuid4()
    await world.rotate(run_id=run_id, emergency=emergency)
    await world.block.awrite_secret(b"by hand")
    keys = set(world.openrouter.keys)

    try:
        said = await world.rotate(run_id=run_id, attempt=2, emergency=emergency, completed=True)
    except DestinationError as error:
        said = str(error)

    assert "vault-secret/checkout" in said
    assert "live at" not in said
    assert set(world.openrouter.keys) == keys


async def test_a_run_that_has_nothing_to_do_says_that_it_was_only_for_itself(world: FakeWorld) -> None:
    """Given a Retry of a completed run, or a scheduled run that comes too early, it finishes nobody else's work."""
    rotated = world.open()
    await follow_protocol(rotated, world.rotation, PLAIN)
    again = world.open(run_id=rotated.identity.id, attempt=2)
    early = world.open(scheduled_for=world.time - timedelta(hours=1))
    completed = world.open(attempt=2, completed=True)

    for run in (again, early, completed):
        await follow_protocol(run, world.rotation, PLAIN)

    assert [run.leaves_other_tries for run in (rotated, again, early, completed)] == [False, True, True, True]


async def test_a_retried_emergency_ends_what_a_clock_that_was_ahead_has_dated_later(world: FakeWorld) -> None:
    """Given a failed last revocation and a clock that was corrected since, the stolen key is revoked at once."""
    await world.rotate()
    stolen = (await world.held()).hash
    run_id, first_started = uuid4(), world.time
    world.later(minutes=40)
    world.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await world.failure(world.rotate(run_id=run_id, emergency=True))
    world.app.state.faults.clear()
    world.later(minutes=-39)

    await world.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True)

    assert stolen not in world.openrouter.keys


async def test_an_emergency_ends_every_older_key_although_the_clock_is_set_back_meanwhile(world: FakeWorld) -> None:
    """Given a clock that jumps back once the new key is published, keys with later dates are revoked all the same."""
    await world.rotate()
    stolen = (await world.held()).hash
    emit = world.emit

    async def jump(event: Event, rotation: str, **payload: str) -> None:
        if event is Event.ROTATION_COMPLETED:
            world.later(hours=-1)
        await emit(event, rotation, **payload)

    with mock.patch.object(world, "emit", jump):
        await world.rotate(emergency=True)

    assert stolen not in world.openrouter.keys
