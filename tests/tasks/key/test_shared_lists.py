"""A list that other people change at the same time loses none of their keys by a rotation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from blocks.openrouter.lists import KeyList, ListKind
from sandbox.server import Fault
from tasks.key import lists
from tests.tasks.conftest import FakeWorld
from tests.tasks.listed import other_key, restrict, with_first_key


async def test_a_dead_key_of_somebody_else_does_not_keep_a_list_as_it_is(world: FakeWorld) -> None:
    """OpenRouter refuses a list with a deleted key, so the same write removes it, and the run notes it."""
    former, dead = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, dead)
    world.openrouter.delete_key(world.openrouter.keys[dead])

    await world.rotate()

    assert which["allowed_api_key_hashes"] == [former.hash, (await world.held()).hash]
    assert [note for note in world.notes if "named a key that is dead" in note]


async def test_a_disabled_key_of_somebody_else_stays_and_is_told_of(world: FakeWorld) -> None:
    """It may be enabled again, so only a person may remove it."""
    former, theirs = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, theirs)
    world.openrouter.keys[theirs].disabled = True

    sentence = await world.failure(world.rotate())

    assert which["allowed_api_key_hashes"] == [former.hash, theirs]
    assert "may be disabled" in sentence


async def test_an_update_that_is_lost_is_made_again(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a concurrent writer who restores the list as it was, the new key is in it in the end."""
    former, theirs = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, theirs)
    replace = world.client.replace_keys
    written: list[int] = []

    async def undone_once(one: KeyList, hashes: Any) -> None:
        before = list(which["allowed_api_key_hashes"])
        await replace(one, hashes)
        written.append(len(hashes))
        if len(written) == 1:
            which["allowed_api_key_hashes"] = [*before, other_key(world)]

    monkeypatch.setattr(world.client, "replace_keys", undone_once)

    await world.rotate()

    assert written == [3, 4]
    assert (await world.held()).hash in which["allowed_api_key_hashes"]


async def test_a_list_that_others_change_all_the_time_is_given_up(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of writes is bounded, and the new key is not published."""
    former, theirs = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, theirs)
    replace, writes = world.client.replace_keys, 0

    async def undone(one: KeyList, hashes: Any) -> None:
        nonlocal writes
        writes += 1
        await replace(one, hashes)
        which["allowed_api_key_hashes"] = [former.hash, theirs]

    monkeypatch.setattr(world.client, "replace_keys", undone)

    sentence = await world.failure(world.rotate())

    assert f"was changed by others each of the {writes} times that it was written" in sentence
    assert (await world.held()).hash == former.hash


async def test_the_last_write_that_may_be_made_is_read_back(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given others who undo every write but the last one, the rotation succeeds."""
    former, theirs = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, theirs)
    replace, left = world.client.replace_keys, lists.MAX_LIST_WRITES

    async def undone_but_once(one: KeyList, hashes: Any) -> None:
        nonlocal left
        left -= 1
        await replace(one, hashes)
        if left:
            which["allowed_api_key_hashes"] = [former.hash, theirs]

    monkeypatch.setattr(world.client, "replace_keys", undone_but_once)

    await world.rotate()

    assert left == 0
    assert (await world.held()).hash in which["allowed_api_key_hashes"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("status", [500, None])
async def test_a_write_without_an_answer_is_settled_by_reading(world: FakeWorld, when: Any, status: int | None) -> None:
    """Whether or not the write took effect, the list names the new key once, and the run continues."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    world.app.state.faults.add(Fault(when, "PATCH", which["id"], status=status, times=1))

    await world.rotate()

    assert which["allowed_api_key_hashes"] == [former.hash, (await world.held()).hash]


async def test_a_place_that_was_lost_in_a_race_is_found_again(world: FakeWorld) -> None:
    """Given a list from which a concurrent writer removed the current key, the next run adds its successor."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    await world.rotate()
    which["allowed_api_key_hashes"] = [former.hash]

    await world.rotate()

    assert (await world.held()).hash in which["allowed_api_key_hashes"]


async def test_a_retirement_puts_the_current_key_in_the_place_of_the_old_one(world: FakeWorld) -> None:
    """Given a list whose only key is due and that lacks the current one, a single write exchanges the two."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    await world.rotate()
    which["allowed_api_key_hashes"] = [former.hash]
    world.later(hours=24)

    await world.retire()

    assert which["allowed_api_key_hashes"] == [(await world.held()).hash]


async def test_a_run_that_lost_its_place_writes_no_list(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is checked before each list is read and written, so that a superseded attempt changes nothing."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    read = world.client.key_lists

    def overtaken(kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        async def lists() -> AsyncIterator[KeyList]:
            other = world.open()
            await other.write(await other.load())
            async for one in read(kind, workspace_id):
                yield one

        return lists()

    monkeypatch.setattr(world.client, "key_lists", overtaken)

    await world.failure(world.rotate())

    assert which["allowed_api_key_hashes"] == [former.hash]


def test_waiting_for_others_is_bounded() -> None:
    """All waits for the writes of one list take less time than the lease of a slot."""
    assert lists.MAX_LIST_WRITES * 2 * lists.READ_BACK_AFTER_SECONDS < 60
