"""What a run asks of Prefect: as few calls as its safety allows, whatever else the rotation has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from bench.costs import a_retirement
from bench.measuring import counted
from flows import rotate
from tasks.model.rotation import Rotation
from tests.e2e.conftest import World, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.driver import deploy_retirements

MOST = 25
MOST_PER_SECRET = 3
MOST_WITH_NOTHING_DUE = 10


async def prepared(world: World, destinations: int = 1, overlap: timedelta = timedelta(0)) -> Rotation:
    """A rotation to some Prefect secrets, after the runs that find what is not there yet."""
    rotation = world.rotation(overlap=overlap)
    names = [f"{rotation.destinations[0]}-{number}" for number in range(destinations)]
    rotation = await world.prepare(rotation.model_copy(update={"destinations": names}))
    for _ in range(2):
        await calls(world, lambda: rotate(rotation, return_state=True))
    return rotation


async def calls(world: World, run: Callable[[], Awaitable[Any]]) -> list[str]:
    """The calls of a run."""
    with counted(world.stack.port) as seen:
        state = await run()
    assert state.is_completed(), state.message
    return seen


async def test_a_rotation_costs_few_calls(world: World) -> None:
    """Those of the engine, the ledger, the slot, the blocks and the page."""
    rotation = await prepared(world)

    seen = await calls(world, lambda: rotate(rotation, return_state=True))

    assert len(seen) <= MOST, seen


async def test_a_further_secret_costs_a_look_a_write_and_a_read(world: World) -> None:
    """No write gets in the way of another one, and before an old key dies all places are read with one call."""
    one, three = await prepared(world), await prepared(world, destinations=3)

    few = await calls(world, lambda: rotate(one, return_state=True))
    more = await calls(world, lambda: rotate(three, return_state=True))

    assert len(more) - len(few) <= 2 * MOST_PER_SECRET, more
    assert len([each for each in more if each.startswith("PATCH /api/block_documents/")]) == 3


async def test_a_retirement_with_nothing_due_costs_few_calls(world: World) -> None:
    """Its key waits, so it only sees that the retirement at its end is scheduled."""
    await deploy_retirements()
    rotation = await prepared(world, overlap=timedelta(hours=1))
    await calls(world, await a_retirement(rotation.name))

    seen = await calls(world, await a_retirement(rotation.name))

    assert len(seen) <= MOST_WITH_NOTHING_DUE, seen
