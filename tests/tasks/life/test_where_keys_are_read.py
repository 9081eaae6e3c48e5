"""A run may name fewer destinations than its deployment, while consumers read the others as well."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from blocks.destination import Destination
from blocks.errors import KeyRotationError, MissingBlockError
from tasks.model.rotation import Rotation
from tests.tasks.conftest import FakeWorld

ONE, OTHER = "vault-secret/one", "vault-secret/other"


@pytest.fixture
def places(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> dict[str, Destination]:
    """Two destinations, both named by the deployment."""
    block = world.block
    found: dict[str, Destination] = {ONE: block, OTHER: block.model_copy(update={"path": "apps/other"})}

    async def destination(name: str) -> Destination:
        if name not in found:
            raise MissingBlockError(f"rotation.destinations: the block {name} does not exist. Nothing was created.")
        return found[name]

    monkeypatch.setattr(world, "destination", destination)
    world.change(destinations=[ONE, OTHER])
    world.deployed = world.rotation
    return found


async def works(world: FakeWorld, place: Destination) -> bool:
    """Return whether a destination holds a live key."""
    held = (await place.read_content()).value
    return held is not None and world.openrouter.is_live(held.get_secret_value())


@pytest.mark.parametrize("emergency", [False, True], ids=["without an overlap", "in an emergency"])
async def test_a_run_for_one_destination_ends_no_key_that_another_holds(
    world: FakeWorld, places: dict[str, Destination], emergency: bool
) -> None:
    """Given parameters from before a destination was added, the key that it holds is kept, and the run says so."""
    await world.rotate()
    world.change(destinations=[ONE], overlap=timedelta(0))

    said = await world.failure(world.rotate(emergency=emergency))

    assert f"was not revoked, because it is still held by {OTHER}." in said
    assert [await works(world, place) for place in places.values()] == [True, True]


async def test_a_second_deployment_of_a_rotation_ends_no_key_that_the_first_ones_destination_holds(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a copied deployment with an unchanged rotation name, its runs keep the keys of the original's consumers."""
    world.deployed = world.rotation.model_copy(update={"destinations": [ONE]})
    world.change(destinations=[ONE])
    await world.rotate()
    world.change(destinations=[OTHER])
    await world.rotate()
    world.later(hours=25)

    said = await world.failure(world.rotate())

    assert f"was not revoked, because it is still held by {ONE}." in said
    assert [await works(world, place) for place in places.values()] == [True, True]


async def test_the_next_run_with_all_destinations_ends_what_was_kept(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """The next full run needs no help from a person."""
    await world.rotate()
    world.change(destinations=[ONE], overlap=timedelta(0))
    await world.failure(world.rotate())
    world.change(destinations=[ONE, OTHER])

    await world.rotate()

    assert world.ledger.superseded == ()
    assert len(world.openrouter.live_keys()) == 1


async def test_a_destination_whose_block_was_deleted_may_hold_the_key_that_it_was_given(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given that the current key was not published there, the former one is kept until a person decides."""
    await world.rotate()
    place = places.pop(OTHER)
    world.change(destinations=[ONE], overlap=timedelta(0))

    said = await world.failure(world.rotate())
    kept = await works(world, place)
    world.deployed = world.rotation
    await world.retire()

    assert f"because {OTHER} may still hold it, and that block was deleted." in said
    assert (kept, world.ledger.superseded) == (True, ())


async def test_a_run_ends_no_key_that_the_destination_of_a_second_deployment_holds(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a copied deployment with an unchanged rotation name, the original's runs keep the key of the copy."""
    world.change(destinations=[OTHER])
    world.twins = [world.rotation]
    await world.rotate()
    world.change(destinations=[ONE])
    world.deployed = world.rotation
    await world.rotate()
    world.later(hours=25)

    said = await world.failure(world.retire())

    assert f"was not revoked, because it is still held by {OTHER}." in said
    assert [await works(world, place) for place in places.values()] == [True, True]


async def test_a_key_that_only_a_destination_of_the_deployment_holds_is_not_deleted_as_left_behind(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a database restored to when the key's create was not answered, no key has been at that destination yet."""
    world.change(destinations=[ONE])
    await world.rotate()
    before, run_id = world.ledger, uuid4()
    world.change(destinations=[OTHER])
    world.deployed = world.rotation
    await world.rotate(run_id=run_id)
    entry = {"run_id": str(run_id), "connection": "openrouter", "since": world.time.isoformat()}
    world.store.value = {**before.to_json(), "unresolved": [entry]}
    world.later(hours=2)

    await world.retire()

    assert [await works(world, place) for place in places.values()] == [True, True]


async def test_a_key_that_was_found_again_is_kept_while_a_copied_deployment_needs_it(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a lost ledger, nobody knows where its keys were published; each ends once no deployment holds it."""
    copy = world.rotation.model_copy(update={"destinations": [OTHER]})
    original = world.rotation.model_copy(update={"destinations": [ONE]})
    world.deployed, world.twins = original, [copy]
    await _rotate_each(world, original, copy)
    former = await world.held_by(places[OTHER])
    world.store.value = None
    world.rotation = original
    await world.rotate()
    world.later(hours=25)

    said = await world.failure(world.retire())
    kept = [await works(world, place) for place in places.values()]
    await _rotate_each(world, copy)

    assert f"was not revoked, because it is still held by {OTHER}." in said
    assert kept == [True, True]
    assert former.hash not in world.openrouter.keys


async def _rotate_each(world: FakeWorld, *rotations: Rotation) -> None:
    for each in rotations:
        world.rotation = each
        await world.rotate()


async def test_a_run_makes_no_room_by_ending_a_key_that_another_destination_holds(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a full ledger and parameters from before a destination was added, the key that it holds is kept."""
    world.change(overlap=timedelta(hours=1))
    await world.rotate()
    world.change(destinations=[ONE])
    while "has no room for another key" not in await outcome(world):
        world.later(seconds=1)
    world.later(hours=1)

    said = await world.failure(world.rotate())

    assert f"was not revoked, because it is still held by {OTHER}." in said
    assert [await works(world, place) for place in places.values()] == [True, True]


async def test_a_run_for_one_destination_takes_no_budget_from_the_key_that_another_holds(
    world: FakeWorld, places: dict[str, Destination]
) -> None:
    """Given a carried budget, consumers there can still spend with the key they read, until the next run publishes."""
    world.change(key={"carry_budget": True})
    world.deployed = world.rotation
    await world.rotate()
    former = await world.held()
    world.spend(former, "1")
    world.change(destinations=[ONE])

    await world.rotate()
    answered = world.use(former)
    world.change(destinations=[ONE, OTHER])
    await world.rotate()

    assert (answered, world.use(former)) == (200, 402)


async def outcome(world: FakeWorld) -> str:
    """Return a run's message or error."""
    try:
        return await world.rotate()
    except KeyRotationError as error:
        return str(error)
