"""Lists may not know a new key yet, when it works already: it is waited for, but not for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest

from blocks.errors import NotYetAcceptedError
from blocks.openrouter.lists import ListKind
from tasks.key.patience import ACCEPTED_WITHIN
from tests.tasks.conftest import FakeWorld
from tests.tasks.listed import KINDS, other_key, restrict, with_first_key


def later_by(world: FakeWorld, lag: timedelta) -> None:
    """Let lists refuse each key that is younger, and those of now not."""
    world.later(hours=2)
    world.openrouter.list_lag = lag


@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_that_does_not_know_the_new_key_yet_is_asked_again(world: FakeWorld, kind: ListKind) -> None:
    """Given a list that knows new keys some seconds late, the new key joins it, and is published then."""
    former = await with_first_key(world)
    which = restrict(world, kind, former.hash, other_key(world))
    later_by(world, timedelta(seconds=20))

    await world.rotate()

    current = await world.held()
    assert current.hash != former.hash
    assert current.hash in which[kind.field]


async def test_a_list_that_never_knows_the_new_key_fails_the_run(world: FakeWorld) -> None:
    """After a minute the run ends with its sentence, the old key stays current, and a later run succeeds."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    later_by(world, timedelta(minutes=50))
    begun = world.time

    with pytest.raises(NotYetAcceptedError) as failed:
        await world.rotate()

    assert "still refuses the key" in str(failed.value)
    assert "BYOK credential production" in str(failed.value)
    assert "Nothing was published" in str(failed.value)
    assert (await world.held()).hash == former.hash
    assert which["allowed_api_key_hashes"] == [former.hash]
    assert timedelta(0) < world.time - begun < 2 * ACCEPTED_WITHIN
    world.openrouter.list_lag = timedelta(0)
    await world.rotate()
    assert (await world.held()).hash in which["allowed_api_key_hashes"]


async def test_all_lists_share_one_wait(world: FakeWorld) -> None:
    """Given many lists that do not know the new key, an emergency waits a minute altogether, and then revokes."""
    former = await with_first_key(world)
    for _ in range(10):
        restrict(world, ListKind.BYOK, former.hash, other_key(world))
    later_by(world, timedelta(minutes=50))
    begun = world.time

    await world.failure(world.rotate(emergency=True))

    assert former.hash not in world.openrouter.keys
    assert world.time - begun < 2 * ACCEPTED_WITHIN


async def test_the_other_keys_of_a_list_are_looked_at_once(world: FakeWorld) -> None:
    """However often the list refuses the new key, each other key in it is read once."""
    former, theirs = await with_first_key(world), other_key(world)
    restrict(world, ListKind.BYOK, former.hash, theirs)
    later_by(world, timedelta(seconds=30))
    world.app.state.requests.clear()

    await world.rotate()

    assert len([path for method, path in world.app.state.requests if method == "GET" and theirs in path]) == 1


async def test_a_refusal_because_of_another_key_is_not_waited_for(world: FakeWorld) -> None:
    """Given a list with a disabled key of somebody else, waiting does not help, so the run fails at once."""
    former, theirs = await with_first_key(world), other_key(world)
    restrict(world, ListKind.BYOK, former.hash, theirs)
    world.openrouter.keys[theirs].disabled = True
    begun = world.time

    sentence = await world.failure(world.rotate())

    assert "may be disabled" in sentence
    assert world.time == begun
