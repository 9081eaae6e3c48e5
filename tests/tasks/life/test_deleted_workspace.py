"""A deleted workspace, with the keys in it, fails no run of a rotation that has left it."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from sandbox.server import Fault
from tasks.audit.findings import Kind
from tasks.model.records import Pending, Unresolved
from tests.tasks.audit.account import only
from tests.tasks.conftest import FakeWorld

REFUSALS = [None, 404, 400]
"""How OpenRouter may answer a list of keys in an unknown workspace; `None` for an empty list."""


async def left_in_a_workspace(world: FakeWorld, entry: str) -> tuple[UUID, str]:
    """Make a rotation leave a workspace with a create of unknown outcome; return the create's run and the workspace."""
    workspace, lost = world.other_workspace(), uuid4()
    world.change(key={"workspace_id": workspace})
    await world.rotate()
    made: dict[str, Any] = {"run_id": lost, "connection": "openrouter", "workspace_id": workspace}
    left = {
        "pending": Pending(**made, destinations=tuple(world.rotation.destinations), intended_at=world.time),
        "unresolved": (Unresolved(**made, since=world.time),),
    }
    world.store.value = world.ledger.model_copy(update={entry: left[entry]}).to_json()
    world.change(key={"workspace_id": None})
    return lost, workspace


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("entry", ["pending", "unresolved"])
async def test_a_create_that_was_lost_in_a_deleted_workspace_stops_no_run(
    world: FakeWorld, entry: str, refusal: int | None
) -> None:
    """The key died with its workspace, so the ledger drops the create, and the destination gets a new key."""
    _, workspace = await left_in_a_workspace(world, entry)
    world.delete_workspace(workspace)
    world.openrouter.unknown_workspace_status = refusal

    message = await world.rotate()
    world.later(hours=1)
    await world.retire()

    assert message.startswith("Rotated")
    assert world.use(await world.held()) == 200
    assert (world.ledger.pending, world.ledger.unresolved) == (None, ())


@pytest.mark.parametrize("without_workspaces", [False, True])
@pytest.mark.parametrize("refusal", [404, 400])
async def test_a_create_that_was_lost_in_a_deleted_workspace_can_be_written_off(
    world: FakeWorld, refusal: int, without_workspaces: bool
) -> None:
    """This works in an account that does not list its workspaces, too, because its keys name those that exist."""
    lost, workspace = await left_in_a_workspace(world, "unresolved")
    world.delete_workspace(workspace)
    world.openrouter.unknown_workspace_status = refusal
    world.openrouter.lacks = {"workspaces": 404} if without_workspaces else {}

    await world.write_off(str(lost))

    assert world.ledger.unresolved == ()


@pytest.mark.parametrize("status", [404, 400])
async def test_a_refused_list_of_a_workspace_that_exists_forgets_nothing(world: FakeWorld, status: int) -> None:
    """The key may be alive there, so the run fails, and the write-off is refused."""
    lost, _ = await left_in_a_workspace(world, "unresolved")
    world.app.state.faults.add(Fault("before", "GET", "/keys", status=status))
    world.later(hours=48)

    sentences = [await world.failure(world.retire()), await world.failure(world.write_off(str(lost)))]

    assert [f"answered {status}" in sentence for sentence in sentences] == [True, True]
    assert [entry.run_id for entry in world.ledger.unresolved] == [lost]


async def test_of_keys_in_a_deleted_workspace_nobody_is_asked_only_for_another_management_key(world: FakeWorld) -> None:
    """No management key can revoke them: a rotation replaces the current key, and the old ones are written off."""
    workspace = world.other_workspace()
    world.change(key={"workspace_id": workspace})
    await world.rotate()
    world.delete_workspace(workspace)

    finding = only(await world.audit(), Kind.OTHER_ACCOUNT)

    assert "the workspace was deleted, or the connection belongs to another account now" in finding.sentence
    assert "write-off-key" in finding.kind.advice
