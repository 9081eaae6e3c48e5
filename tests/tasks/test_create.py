"""A create with an unknown outcome is settled first, and repeated only if the service allows it."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from unittest import mock
from uuid import uuid4

import pytest

from blocks.errors import KeyRotationError, UnavailableError
from sandbox.server import Fault
from tasks.model.keys import marker
from tasks.model.tries import passes_by_itself
from tests.tasks.conftest import FakeWorld


@pytest.mark.parametrize(("asked", "waited"), [("7", 7), (None, 0)], ids=["Retry-After", "no Retry-After"])
async def test_a_create_is_made_again_when_the_service_has_asked_to_wait_for_it(
    world: FakeWorld, asked: str | None, waited: int
) -> None:
    """OpenRouter answers 503 and creates no key: the single repetition comes after the wait that it asks for."""
    headers = {"Retry-After": asked} if asked else {}
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=503, headers=headers, times=1))
    begun = world.time

    await world.rotate()

    assert len(world.openrouter.created) == 1
    assert world.time - begun >= timedelta(seconds=waited)


async def test_a_create_is_left_to_the_next_run_when_the_service_asks_for_too_much_patience(world: FakeWorld) -> None:
    """A run neither waits for an hour nor repeats the request earlier than OpenRouter asks."""
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=503, headers={"Retry-After": "3600"}, times=1))

    await world.failure(world.rotate())

    assert world.openrouter.created == []
    assert world.ledger.pending is None


@pytest.mark.parametrize("status", [408, 460, 499, 504])
async def test_a_key_that_was_made_behind_a_status_that_confirms_nothing_does_not_live_on(
    world: FakeWorld, status: int
) -> None:
    """A proxy, or OpenRouter, times out after the key was created: the run finds it by its marker and deletes it."""
    world.app.state.faults.add(Fault("after", "POST", "/keys$", status=status, times=1))

    await world.rotate()

    assert len(world.openrouter.created) == 2
    assert set(world.openrouter.keys) == {(await world.held()).hash}


@pytest.mark.parametrize("status", [400, 403])
async def test_a_creator_that_has_left_is_named_where_the_create_is_refused(world: FakeWorld, status: int) -> None:
    """OpenRouter refuses a key for somebody who is no member any more, and its answer need not say why."""
    world.change(key={"creator_user_id": "user_gone"})
    body, headers = f'{{"error": {{"code": {status}, "message": "no"}}}}', {"content-type": "application/json"}
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=status, body=body, headers=headers, times=1))

    failure = await world.failure(world.rotate())

    assert "user_gone" in str(failure)
    assert "rotation.key.creator_user_id" in str(failure)
    assert world.openrouter.created == []


@pytest.mark.parametrize("emergency", [False, True], ids=["scheduled", "emergency"])
@pytest.mark.parametrize("superseded", [5, 6, 7])
async def test_creates_without_an_answer_fill_no_ledger(world: FakeWorld, superseded: int, emergency: bool) -> None:
    """Given a ledger as full as a rotation can leave it, each failure passes by itself, and the last one does."""
    world.change(overlap=timedelta(days=30), destinations=["vault-secret/checkout-0", "vault-secret/checkout-1"])
    for _ in range(superseded + 1):
        world.later(hours=1)
        await world.rotate()
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=502))
    who = {"run_id": uuid4(), "first_started": world.time, "emergency": emergency}

    failures = [await failure_of(world.rotate(attempt=attempt, **who), world) for attempt in range(1, 6)]
    (entry,) = world.ledger.unresolved
    assert world.time - entry.since < timedelta(minutes=2)
    world.app.state.faults.clear()
    await world.rotate(attempt=6, **who)

    assert all(failure and passes_by_itself(failure) for failure in failures)
    assert len(world.ledger.superseded) == (0 if emergency else superseded + 1)


async def failure_of(work: Awaitable[str], world: FakeWorld) -> KeyRotationError | None:
    """Return the failure of a run, a minute later."""
    try:
        await work
    except KeyRotationError as error:
        world.later(minutes=1)
        return error
    return None


async def test_a_repetition_without_room_is_left_to_the_next_try(world: FakeWorld) -> None:
    """Given no room for a repetition, the run fails because of the first failure, which passes by itself."""
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=502, times=1))
    with mock.patch("tasks.create.has_room_for", side_effect=[True, False]) as asked:
        failure = await failure_of(world.rotate(), world)

    assert isinstance(failure, UnavailableError)
    assert asked.call_count == 2
    await world.rotate()


async def test_a_second_key_of_a_run_is_expected_although_the_first_one_was_found(world: FakeWorld) -> None:
    """Given two creates of a run that take effect late, one after the other, both keys are deleted."""
    run_id = uuid4()
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=502, times=2))
    await failure_of(world.rotate(run_id=run_id), world)
    for _ in range(2):
        name = f"{marker('checkout', run_id, world.id)} checkout"
        world.openrouter.add_key(world.openrouter.accounts[0], {"name": name, "limit": 5})
        await world.rotate()

    assert set(world.openrouter.keys) == world.ledger.hashes()
    world.later(minutes=15)
    await world.retire()
    assert world.ledger.unresolved == ()
