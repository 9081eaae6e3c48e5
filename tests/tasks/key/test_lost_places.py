"""A place in a list that a successor cannot take is told of, and is never lost silently."""

from __future__ import annotations

from datetime import timedelta

import pytest

from blocks.openrouter.lists import ListKind
from tests.tasks.conftest import FakeWorld
from tests.tasks.listed import KINDS, other_key, restrict, with_first_key, with_listed_key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inherit", [True, False])
async def test_places_in_a_former_workspace_are_told_of(world: FakeWorld, kind: ListKind, inherit: bool) -> None:
    """Given a rotation that moves to another workspace, the run says once which lists its new key is not in."""
    former = await with_first_key(world)
    which = restrict(world, kind, former.hash, other_key(world))
    world.change(key={"inherit": inherit, "workspace_id": world.other_workspace()})

    await world.rotate()
    told = [note for note in world.notes if f"{kind} production" in note]
    await world.rotate()

    assert len(told) == 1
    assert "another workspace" in told[0]
    assert former.hash in which[kind.field]
    assert not [note for note in world.notes if f"{kind} production" in note]


async def test_a_plan_says_which_places_a_former_workspace_keeps(world: FakeWorld) -> None:
    """The plan has the same sentence, and changes nothing."""
    former = await with_first_key(world)
    restrict(world, ListKind.BYOK, former.hash)
    world.change(key={"workspace_id": world.other_workspace()})
    world.app.state.requests.clear()

    _, steps = await world.plan()

    assert len([step for step in steps if "BYOK credential production" in step and "another workspace" in step]) == 1
    assert {method for method, _ in world.app.state.requests} == {"GET"}


async def test_a_list_for_every_workspace_is_joined_and_not_told_of(world: FakeWorld) -> None:
    """A credential of no workspace serves the new key as well."""
    former = await with_first_key(world)
    which = world.openrouter.add_credential(world.openrouter.accounts[0], None, allowed_api_key_hashes=[former.hash])
    world.change(key={"workspace_id": world.other_workspace()})

    await world.rotate()

    assert (await world.held()).hash in which["allowed_api_key_hashes"]
    assert not [note for note in world.notes if "another workspace" in note]


async def test_a_former_workspace_that_is_gone_stops_nothing(world: FakeWorld) -> None:
    """Given that the former workspace was deleted with its lists, there is nothing to tell."""
    workspace = world.other_workspace()
    world.change(key={"inherit": True, "workspace_id": workspace})
    await world.rotate()
    world.delete_workspace(workspace)
    world.change(key={"workspace_id": world.openrouter.accounts[0].workspaces[0]})

    await world.rotate()

    assert not [note for note in world.notes if "another workspace" in note]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_disabled_key_that_nobody_succeeds_is_told_of(world: FakeWorld, kind: ListKind) -> None:
    """Given inherit off, the run that disables a key names the lists that it leaves, and a restore does so again."""
    world.change(overlap=timedelta(0), retirement={"revoke": "disable-then-delete"})
    former, theirs, which = await with_listed_key(world, kind)

    await world.rotate()
    at_the_end = [note for note in world.notes if "out of the" in note]
    await world.restore()

    assert which[kind.field] == [theirs]
    assert len(at_the_end) == 1
    assert f"{kind} production" in at_the_end[0]
    assert "restore" in at_the_end[0]
    assert (await world.held()).hash == former.hash
    [told] = [note for note in world.notes if f"{kind} production" in note]
    assert "needs" in told


async def test_a_disabled_key_whose_place_is_taken_is_not_told_of(world: FakeWorld) -> None:
    """With inherit, its successor keeps the place, and a restore takes it from there."""
    former = await with_first_key(world, overlap=timedelta(0), retirement={"revoke": "disable-then-delete"})
    restrict(world, ListKind.BYOK, former.hash, other_key(world))

    await world.rotate()
    notes = list(world.notes)
    await world.restore()

    assert not [note for note in [*notes, *world.notes] if "BYOK credential" in note]


async def test_a_restore_within_the_overlap_tells_of_no_lists(world: FakeWorld) -> None:
    """A key that was never disabled has left no list."""
    await with_listed_key(world, ListKind.BYOK)
    await world.rotate()

    await world.restore()

    assert not [note for note in world.notes if "needs" in note]
