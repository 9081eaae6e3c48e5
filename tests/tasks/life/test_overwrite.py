"""A destination's content before the first rotation: a value that is no key is replaced only on request."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from blocks.errors import ConfigurationError
from sandbox.server import Fault
from tasks.life.plan import plan
from tasks.model.keys import may_be_replaced
from tasks.model.rotation import parse_rotation
from tests.tasks.conftest import FakeWorld

DATABASE = "postgresql://checkout:hunter2@db/checkout"
PLACE = "vault-secret/checkout"


async def hold(world: FakeWorld, value: str) -> None:
    """Put a value into the destination by hand."""
    await world.block.awrite_secret(value.encode())


@pytest.mark.parametrize("emergency", [False, True])
async def test_a_value_that_is_no_key_is_refused_before_anything_is_created(world: FakeWorld, emergency: bool) -> None:
    """Given a database's URL, the first rotation names destination and field, quotes no value, and changes nothing."""
    await hold(world, DATABASE)
    before = world.everything()

    sentence = await world.failure(world.rotate(emergency=emergency))

    assert f"would replace a value that is not an OpenRouter key in {PLACE}." in sentence
    assert "hunter2" not in sentence
    assert world.everything() == before


async def test_a_plan_says_what_would_be_refused(world: FakeWorld) -> None:
    """Given a value that is no key, the plan fails as the run would."""
    await hold(world, DATABASE)
    run = world.open()

    sentence = await world.failure(plan(run, world.rotation))

    assert PLACE in sentence


async def test_a_value_that_may_be_lost_is_replaced(world: FakeWorld) -> None:
    """Given that `overwrite` names the destination, the first rotation publishes there."""
    await hold(world, DATABASE)
    world.change(overwrite=[PLACE])

    await world.rotate()

    assert world.openrouter.is_live(world.in_vault())


@pytest.mark.parametrize("value", [" ", "not-yet-rotated", "not-yet-rotated\n", "sk-or-v1-made-by-hand"])
async def test_a_placeholder_or_another_key_is_replaced_without_asking(world: FakeWorld, value: str) -> None:
    """Given an empty place, the documented placeholder or an OpenRouter key, the first rotation publishes there."""
    await hold(world, value)

    await world.rotate()

    assert world.openrouter.is_live(world.in_vault())


async def test_a_destination_of_the_rotation_is_healed_whatever_somebody_has_put_there(world: FakeWorld) -> None:
    """Given a destination that has already held a key of this rotation, the next one publishes over any other value."""
    await world.rotate()
    await hold(world, DATABASE)

    await world.rotate()

    assert world.openrouter.is_live(world.in_vault())


async def test_a_half_published_rotation_does_not_make_a_value_ones_own(world: FakeWorld) -> None:
    """Given a first run that failed before it published, a value that was put there since is protected."""
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await world.failure(world.rotate())
    world.app.state.faults.clear()
    await hold(world, DATABASE)

    sentence = await world.failure(world.rotate())

    assert PLACE in sentence
    assert world.in_vault() == DATABASE


@pytest.mark.parametrize(
    ("value", "may_be"),
    [(None, True), ("", True), ("not-yet-rotated", True), ("sk-or-v1-x", True), ("sk-live-x", False), ("5", False)],
)
def test_what_may_be_replaced(value: str | None, may_be: bool) -> None:
    """Replaceable are an empty place, the placeholder, and everything that begins like an OpenRouter key."""
    assert may_be_replaced(None if value is None else SecretStr(value)) is may_be


def test_overwrite_names_destinations_only() -> None:
    """Another name can only be a mistake, so it is refused."""
    fields: dict[str, Any] = {"name": "a", "connection": "b", "key": {"name": "c"}, "destinations": [PLACE]}

    with pytest.raises(ConfigurationError, match=r"^rotation\.overwrite: each must be one of"):
        parse_rotation({**fields, "overwrite": ["vault-secret/chekout"]})
