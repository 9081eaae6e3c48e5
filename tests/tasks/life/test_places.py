"""A block was edited to another place, or removed: the run names the key at its former place, which ends no sooner."""

from __future__ import annotations

import itertools
from datetime import timedelta
from unittest import mock

import pytest

from blocks.errors import ServiceError
from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.audit.findings import Kind
from tasks.life.plan import plan
from tasks.model.ledger import Ledger
from tasks.model.room import MAX_LEDGER_BYTES, size
from tasks.model.times import show_time
from tests.tasks.conftest import FakeWorld

OVERLAP = timedelta(hours=24)


def edit(world: FakeWorld, path: str = "") -> str:
    """Point the block to another path, or create it anew there; return its former place."""
    former, block = world.block.place(), world.block
    world.block = block.model_copy(update={"path": path or f"{block.path}-moved"})
    return former


async def test_a_run_says_which_key_the_former_place_holds_and_until_when(world: FakeWorld) -> None:
    """Given a block that was edited to another path, the key there lives for its overlap, and the message says so."""
    await world.rotate()
    former_key, former = await world.held(), edit(world)

    said = await world.rotate()

    assert world.openrouter.is_live(former_key.secret)
    assert world.superseded.left_at == (former,)
    assert said.endswith(
        f"The former place {former} may still hold the superseded key {former_key.label}, which ends at "
        f"{show_time(world.time + OVERLAP)}: move its consumers before that."
    )


async def test_a_run_that_finds_the_key_too_young_says_what_the_former_place_holds(world: FakeWorld) -> None:
    """Such a run revokes what is due like any other, so it names who may still read a superseded key."""
    await world.rotate()
    former = edit(world)
    await world.rotate()
    world.change(minimum_age=timedelta(days=7))

    said = await world.rotate(scheduled_for=world.time)

    assert "younger than its minimum age" in said
    assert f"The former place {former} may still hold the superseded key" in said


async def test_the_retirement_says_that_the_former_place_holds_a_dead_key(world: FakeWorld) -> None:
    """Given that the overlap has ended, the key is revoked, and the message names the place that still holds it."""
    await world.rotate()
    former_key, former = await world.held(), edit(world)
    await world.rotate()
    world.later(days=2)

    said = await world.retire()

    assert former_key.hash not in world.openrouter.keys
    assert f"The former place {former} may still hold the key {former_key.label}, which has ended" in said


@pytest.mark.parametrize("emergency", [False, True], ids=["without an overlap", "in an emergency"])
async def test_a_key_that_ends_at_once_ends_at_the_former_place_too_and_the_run_says_so(
    world: FakeWorld, emergency: bool
) -> None:
    """Given no overlap, a person has chosen that the former key ends as soon as the new one is published."""
    world.change(overlap=OVERLAP if emergency else timedelta(0))
    await world.rotate()
    former_key, former = await world.held(), edit(world)

    said = await world.rotate(emergency=emergency)

    assert former_key.hash not in world.openrouter.keys
    assert f"The former place {former} may still hold the key {former_key.label}, which has ended" in said


async def test_a_destination_that_was_taken_out_is_a_former_place_too(world: FakeWorld) -> None:
    """Given that the rotation names another destination now, the run reports the one that it has left likewise."""
    await world.rotate()
    former_key, former = await world.held(), edit(world)
    world.change(destinations=["vault-secret/other"])

    said = await world.rotate()

    assert f"The former place {former} may still hold the superseded key {former_key.label}" in said


async def test_another_block_of_the_same_place_leaves_nothing(world: FakeWorld) -> None:
    """Given another block for the same path, there is nothing to report, because consumers read the new key there."""
    await world.rotate()
    world.change(destinations=["vault-secret/other"])

    said = await world.rotate()

    assert "former place" not in said
    assert world.superseded.left_at == ()


async def test_a_place_to_which_the_rotation_returns_is_left_no_more(world: FakeWorld) -> None:
    """Given a block that was edited back, its place holds the newest key, and only the other place is reported."""
    await world.rotate()
    path = world.block.path
    edit(world)
    await world.rotate()
    between = edit(world, path)

    await world.rotate()

    assert [key.left_at for key in world.ledger.superseded] == [(), (between,)]


async def test_a_half_published_key_lives_where_nobody_can_look_any_more(world: FakeWorld) -> None:
    """Given a run that died after publishing, and a block edited since, the key gets its overlap."""
    await world.rotate()
    with mock.patch.object(Ledger, "published", side_effect=ServiceError("The process died.")):
        await world.failure(world.rotate())
    half_published, former = await world.held(), edit(world)

    said = await world.rotate()

    assert world.openrouter.is_live(half_published.secret)
    given_up = next(key for key in world.ledger.superseded if key.hash == half_published.hash)
    assert given_up.revoke_at == world.time + OVERLAP
    assert given_up.left_at == (former,)
    assert f"The former place {former} may still hold the superseded key {half_published.label}" in said


async def test_a_restored_key_is_not_left_at_the_place_to_which_it_returns(world: FakeWorld) -> None:
    """Given a restore after an edit, only the key that it replaces is still at a former place."""
    await world.rotate()
    await world.rotate()
    replaced, former = await world.held(), edit(world)
    await world.block.awrite_secret(b"not-yet-rotated")
    secret = next(key for key in world.openrouter.keys.values() if key.hash == world.superseded.hash).secret
    await world.block.awrite_secret(secret.encode())

    said = await world.restore()

    assert f"The former place {former} may still hold the superseded key {replaced.label}" in said


@pytest.mark.parametrize("overlap", [OVERLAP, timedelta(0)])
async def test_a_plan_says_it_before_anything_happens(world: FakeWorld, overlap: timedelta) -> None:
    """Given an edited block, the plan names the former place, its key, and when that would end."""
    world.change(overlap=overlap)
    await world.rotate()
    key, former = await world.held(), edit(world)

    _, steps = await plan(world.open(), world.rotation)

    ends = "which ends 1 day after the next rotation" if overlap else "which the next rotation ends"
    assert steps[-1] == (
        f"The former place {former} may still hold the key {key.label}, {ends}: move its consumers before that."
    )


async def test_an_audit_says_it_before_the_rotation_and_after(world: FakeWorld) -> None:
    """Given an edited block, the audit reports a move, not a manual change; after the rotation, when the key ends."""
    await world.rotate()
    former = edit(world)

    before = (await world.audit()).findings
    await world.rotate()
    after = (await world.audit()).findings

    assert [finding.kind for finding in before] == [Kind.DESTINATION_MOVED]
    assert f"the former place {former} may still hold the current key" in before[0].sentence
    assert [(finding.kind, finding.needs_person) for finding in after] == [(Kind.FORMER_PLACE, False)]
    assert show_time(world.time + OVERLAP) in after[0].sentence


async def test_a_ledger_of_an_earlier_format_does_not_say_that_a_block_was_edited(world: FakeWorld) -> None:
    """Given a ledger without places, it is unknown where the key was published, so nothing is reported."""
    await world.rotate()
    value = world.store.value
    del value["current"]["places"]
    world.store.value = {**value, "format": 2}

    said = await world.rotate()

    assert "former place" not in said


async def test_places_take_no_room_from_keys(world: FakeWorld) -> None:
    """Given a full ledger, the former places are dropped from it, and the rotation completes."""
    world.change(overlap=timedelta(days=30))
    base = world.block.path

    async def move_for_ever() -> None:
        for number in itertools.count():
            edit(world, f"{base}/{'long-' * 30}{number}")
            await world.rotate()

    assert "has no room for another key" in await world.failure(move_for_ever())
    assert size(world.ledger) <= MAX_LEDGER_BYTES
    assert len(world.ledger.superseded) >= 6


async def test_a_failed_publish_to_the_new_place_ends_nothing_at_the_former(world: FakeWorld) -> None:
    """Given a new place that cannot be written, the former key stays current, and lives on."""
    await world.rotate()
    key = await world.held()
    edit(world)
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))

    await world.failure(world.rotate())

    assert world.openrouter.is_live(key.secret)
    assert world.ledger.superseded == ()


async def test_what_stands_at_the_new_place_is_not_lost_without_being_asked_for(world: FakeWorld) -> None:
    """Given a block that was edited to a place with a database's URL, the run refuses like a first run."""
    await world.rotate()
    edit(world)
    await world.block.awrite_secret(b"postgresql://checkout:hunter2@db/checkout")
    before = world.everything()

    sentence = await world.failure(world.rotate())

    assert "would replace a value that is not an OpenRouter key in vault-secret/checkout." in sentence
    assert world.everything() == before


async def edited_to_a_place_that_held_the_former_key(world: FakeWorld, value: bytes) -> StoredKey:
    """Rotate twice, and edit the block to a place that holds a value now; return the former key, which stood there."""
    await world.rotate()
    former = await world.held()
    await world.rotate()
    edit(world)
    await world.block.awrite_secret(former.secret.encode())
    await world.block.awrite_secret(value)
    return former


async def test_a_restored_key_replaces_no_value_at_a_new_place(world: FakeWorld) -> None:
    """Given a block that was edited to a place with a database's URL, where the key stood once, nothing is changed."""
    await edited_to_a_place_that_held_the_former_key(world, b"postgresql://checkout:hunter2@db/checkout")
    before = world.everything()

    sentence = await world.failure(world.restore())

    assert "would replace a value that is not an OpenRouter key in vault-secret/checkout, which pointed" in sentence
    assert world.everything() == before


async def test_a_restored_key_replaces_a_value_that_may_be_lost(world: FakeWorld) -> None:
    """Given that the rotation names the destination in `overwrite`, a restoration may do what a rotation may."""
    former = await edited_to_a_place_that_held_the_former_key(world, b"changeme")
    world.change(overwrite=["vault-secret/checkout"])

    await world.restore()

    assert await world.held() == former


async def test_a_run_says_that_a_key_at_a_former_place_has_no_budget_left(world: FakeWorld) -> None:
    """Given a carried budget, consumers there get 402 at once, and not only when the overlap ends."""
    world.change(key={"carry_budget": True})
    await world.rotate()
    world.spend(former_key := await world.held(), "1")
    edit(world)

    said = await world.rotate()

    assert world.use(former_key) == 402
    assert f"may still hold the superseded key {former_key.label}, which has no budget left, because" in said
    assert said.endswith("move its consumers now.")
