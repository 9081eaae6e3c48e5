"""A place in a list that a successor cannot take is told of, and is never lost silently."""

from __future__ import annotations

import pytest

from blocks.openrouter.lists import ListKind
from tests.tasks.conftest import FakeWorld
from tests.tasks.listed import KINDS, other_key, restrict, with_first_key


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
