"""A create with an unknown outcome is settled first, and repeated only if the service allows it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.server import Fault
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
