"""Other rotations publish to other fields of the same Vault secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.destination import Content, Destination
from tasks.world.destinations import MAX_WRITES
from tests.tasks.conftest import FakeWorld


class Crowded(Destination):
    """A destination in which somebody else writes a field immediately before each of our writes."""

    def __init__(self, block: Any, writes: list[tuple[str, str]]) -> None:
        self._block = block
        self._writes = writes

    def place(self) -> str:
        """Return the place of the block."""
        return str(self._block.place())

    async def read_content(self) -> Content:
        """Read the block's content."""
        content: Content = await self._block.read_content()
        return content

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Write after a neighbour has written."""
        if self._writes:
            field, text = self._writes.pop(0)
            beside = self._block.model_copy(update={"field": field})
            await beside.write_content(SecretStr(text), await beside.read_content(), {})
        await self._block.write_content(value, content, written_by)


@pytest.fixture
def crowd(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The fields and values that neighbours write, one before each of our writes."""
    writes: list[tuple[str, str]] = []

    async def destination(_name: str) -> Destination:
        return Crowded(world.block, writes)

    monkeypatch.setattr(world, "destination", destination)
    return writes


@pytest.mark.parametrize("times", [1, MAX_WRITES - 1])
async def test_a_write_to_a_field_beside_the_key_does_not_fail_the_run(
    world: FakeWorld, crowd: list[tuple[str, str]], times: int
) -> None:
    """Check-and-set rejects our write because of the neighbour's; after a repetition, both fields are there."""
    await world.rotate()
    crowd += [("neighbour", f"key {number}") for number in range(times)]

    await world.rotate()

    current = world.ledger.current
    beside = (await world.block.model_copy(update={"field": "neighbour"}).read_content()).value
    assert current is not None
    assert (await world.held()).hash == current.hash
    assert beside is not None
    assert beside.get_secret_value() == f"key {times - 1}"


async def test_neighbours_who_never_stop_end_the_run_with_a_plain_sentence(
    world: FakeWorld, crowd: list[tuple[str, str]]
) -> None:
    """After a bounded number of attempts the run fails; consumers keep the former key, and a Retry finishes."""
    await world.rotate()
    former = await world.held()
    crowd += [("neighbour", f"key {number}") for number in range(MAX_WRITES)]

    failure = await world.failure(world.rotate())

    assert "somebody else has written there" in failure
    assert crowd == []
    assert world.openrouter.is_live((await world.held()).secret)
    assert (await world.held()).hash == former.hash


async def test_a_change_of_the_key_itself_is_not_overwritten(world: FakeWorld, crowd: list[tuple[str, str]]) -> None:
    """A write to our own field between our read and our write is no neighbour's, so the run stops."""
    await world.rotate()
    crowd += [("value", "written by somebody")]

    failure = await world.failure(world.rotate())

    assert "somebody else has written there" in failure
    assert world.in_vault() == "written by somebody"
