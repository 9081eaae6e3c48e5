"""A destination that the rotation has left cannot be read or written any more: it stops no run, and no emergency."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from blocks.destination import Destination
from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.model.keys import marker
from tests.tasks.conftest import FakeWorld

HERE, LEFT = "vault-secret/here", "vault-secret/left"
REFUSED = '{"errors":["1 error occurred: permission denied"]}'
READ, WRITE = ("GET",), ("POST", "PUT")
EMERGENCY = pytest.mark.parametrize("emergency", [False, True], ids=["scheduled", "emergency"])
STATUSES = pytest.mark.parametrize("status", [403, 503], ids=["refused", "unavailable"])


@pytest.fixture
def places(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> dict[str, Destination]:
    """Two destinations, of which the rotation has one."""
    found: dict[str, Destination] = {HERE: world.block, LEFT: world.block.model_copy(update={"path": "apps/left"})}

    async def destination(name: str) -> Destination:
        return found[name]

    monkeypatch.setattr(world, "destination", destination)
    world.change(destinations=[HERE])
    return found


def close(world: FakeWorld, methods: Collection[str], status: int) -> None:
    """Let Vault refuse calls of these methods at the place that the rotation has left."""
    for method in methods:
        world.vault_app.state.faults.add(Fault("before", method, "/data/apps/left", status=status, body=REFUSED))


async def left_behind(world: FakeWorld, run_id: UUID) -> StoredKey:
    """Leave the key of a run that was killed right after its create, for a destination that the rotation has left."""
    await world.rotate()
    name = f"{marker('checkout', run_id, world.id)} checkout"
    key = world.openrouter.add_key(world.openrouter.accounts[0], {"name": name, "limit": 5})
    made = {"run_id": str(run_id), "connection": "openrouter", "intended_at": world.time.isoformat()}
    world.store.value = {**world.ledger.to_json(), "pending": {**made, "destinations": [LEFT]}}
    return key


@STATUSES
@EMERGENCY
async def test_a_place_that_refuses_writes_can_be_left(
    world: FakeWorld, places: dict[str, Destination], emergency: bool, status: int
) -> None:
    """Given a failed publication there, the key is given up: it ends with the overlap, or at once in an emergency."""
    await world.rotate()
    former = await world.held()
    close(world, WRITE, status)
    world.change(destinations=[LEFT])
    await world.failure(world.rotate())
    (given_up,) = [key for key in world.openrouter.live_keys() if key.hash != former.hash]
    world.change(destinations=[HERE])

    said = await world.rotate(emergency=emergency)

    assert f"The former place {places[LEFT].place()} may still hold the" in said
    assert f"{LEFT} is no destination of this run and cannot be written" in " ".join(world.notes)
    alive = {key.hash for key in world.openrouter.live_keys()}
    held = (await world.held()).hash
    assert alive == ({held} if emergency else {held, former.hash, given_up.hash})
    world.later(days=1)
    await world.retire()
    assert [key.hash for key in world.openrouter.live_keys()] == [held]


@STATUSES
@EMERGENCY
async def test_a_place_that_cannot_be_read_can_be_left(
    world: FakeWorld, places: dict[str, Destination], emergency: bool, status: int
) -> None:
    """Given a key whose create was never recorded, it is kept for the overlap, or ends at once in an emergency."""
    key = await left_behind(world, uuid4())
    close(world, READ, status)

    await world.rotate(emergency=emergency)

    assert (key.hash in world.openrouter.keys) is not emergency
    assert f"{LEFT} is no destination of this run and cannot be read" in " ".join(world.notes)
    assert any(key.label in note and "former destination may hold it" in note for note in world.notes)
    world.later(days=1)
    await world.retire()
    assert set(world.openrouter.keys) == {(await world.held()).hash}


async def test_a_retirement_keeps_for_the_overlap_what_a_former_place_may_hold(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a key that turns up late, a retirement does not delete it, and does not fail."""
    run_id = uuid4()
    key = await left_behind(world, run_id)
    world.store.value = world.ledger.left_unresolved().to_json()
    world.deployed = world.rotation.model_copy(update={"overlap": timedelta(hours=2)})
    world.twins = [world.rotation.model_copy(update={"destinations": [LEFT]})]
    close(world, READ, 403)

    await world.retire()

    assert world.ledger.unresolved == ()
    assert (world.superseded.hash, world.superseded.revoke_at) == (key.hash, world.time + timedelta(hours=2))
