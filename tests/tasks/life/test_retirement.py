"""Retirement by use, not only by time; and emergencies, which wait for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from flows.rotate import follow_protocol
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.model.records import Superseded
from tasks.steps import PLAIN
from tasks.world.run import Run
from tests.tasks.conftest import FakeWorld

UNUSED = {"retire_when": "unused", "quiet_time": timedelta(hours=2), "max_overlap": timedelta(days=7)}


async def rotated_twice(world: FakeWorld, **retirement: object) -> None:
    """Rotate twice, so that a superseded key is in its overlap."""
    world.change(retirement=retirement)
    await world.rotate()
    await world.rotate()


async def test_by_default_the_end_of_the_overlap_is_enough(world: FakeWorld) -> None:
    """The overlap ends a superseded key even while it is in use."""
    await rotated_twice(world)
    former = world.key(world.superseded.hash)
    world.later(hours=24)
    world.spend(former, "0.5")

    await world.retire()

    assert former.hash in world.openrouter.deleted


async def test_an_unused_key_is_revoked_after_its_quiet_time(world: FakeWorld) -> None:
    """With `unused`, an unused key is revoked once a quiet time after its overlap has passed, and not before."""
    await rotated_twice(world, **UNUSED)
    former = world.superseded.hash
    world.later(hours=24)
    await world.retire()
    after_overlap = former in world.openrouter.deleted

    world.time = world.retirements[-1]
    await world.retire()

    assert (after_overlap, former in world.openrouter.deleted) == (False, True)
    assert world.retirements[-1] - timedelta(hours=2) == world.ledger.current.since + timedelta(hours=24)  # type: ignore[union-attr]


@pytest.mark.parametrize("with_last_used_at", [True, False], ids=["last_used_at", "usage sums"])
async def test_a_used_key_is_postponed_with_growing_waits_until_it_is_quiet(
    world: FakeWorld, with_last_used_at: bool
) -> None:
    """While the key is in use, its revocation is postponed by growing waits; it is revoked after a quiet time."""
    world.openrouter.with_last_used_at = with_last_used_at
    await rotated_twice(world, **UNUSED)
    former = world.key(world.superseded.hash)
    world.later(hours=24)
    waits = []
    for _ in range(4):
        world.spend(former, "0.25")
        await world.retire()
        waits.append(world.retirements[-1] - world.time)
        world.time = world.retirements[-1]
    alive_while_used = former.hash in world.openrouter.keys

    await world.retire()
    world.time = max(world.retirements[-1], world.time)
    await world.retire()

    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
    assert alive_while_used
    assert former.hash in world.openrouter.deleted


async def test_a_postponement_is_told_with_label_and_latest_usage(world: FakeWorld) -> None:
    """Event and report name the key's label and its spending; the run's message says until when it is postponed."""
    await rotated_twice(world, **UNUSED)
    former = world.key(world.superseded.hash)
    world.later(hours=24)
    world.spend(former, "0.25")

    message = await world.retire()

    told = [payload for event, payload in world.events if event is Event.KEY_REVOCATION_POSTPONED]
    assert [payload["key_label"] for payload in told] == [former.label]
    assert "0.25 USD" in world.notes[0]
    assert former.label in world.notes[0]
    assert f"{world.retirements[-1]:%Y-%m-%d %H:%M} UTC" in message


@pytest.mark.parametrize(("on_still_used", "dies"), [("revoke", True), ("keep", False)])
async def test_after_the_longest_overlap_it_is_done_as_chosen(world: FakeWorld, on_still_used: str, dies: bool) -> None:
    """A key that is still in use after its longest overlap is revoked, or kept while the run fails, as chosen."""
    await rotated_twice(world, **UNUSED, on_still_used=on_still_used)
    former = world.key(world.superseded.hash)
    world.later(days=7)
    world.spend(former, "0.25")

    sentence = await world.retire() if dies else await world.failure(world.retire())

    assert (former.hash in world.openrouter.deleted) is dies
    assert former.label in sentence
    assert ("still used after its longest overlap" in sentence) is not dies


async def test_no_postponement_goes_beyond_the_longest_overlap(world: FakeWorld) -> None:
    """The last check is exactly at the end of the longest overlap."""
    await rotated_twice(world, **UNUSED)
    former = world.key(world.superseded.hash)
    since = world.superseded.since
    world.later(hours=24)
    while former.hash in world.openrouter.keys:
        world.spend(former, "0.1")
        await world.retire()
        last, world.time = world.time, max(world.time, world.retirements[-1])

    assert since is not None
    assert last == since + timedelta(days=7)


async def test_a_key_that_was_deleted_by_hand_is_not_waited_for(world: FakeWorld) -> None:
    """A superseded key that no longer exists at OpenRouter is dropped from the ledger."""
    await rotated_twice(world, **UNUSED)
    world.openrouter.delete_key(world.key(world.superseded.hash))
    world.later(hours=24)

    await world.retire()

    assert world.ledger.superseded == ()


@pytest.mark.parametrize("emergency", [False, True])
async def test_a_key_that_a_lost_answer_deleted_is_blamed_on_nobody(world: FakeWorld, emergency: bool) -> None:
    """The repeated DELETE finds no key, which does not show who has deleted it, so only that is noted."""
    await rotated_twice(world)
    former = world.superseded
    world.later(hours=24)
    world.app.state.faults.add(Fault("after", "DELETE", "/keys/", status=502, times=1))

    await (world.rotate(emergency=True) if emergency else world.retire())

    assert [note for note in world.notes if "superseded" in note] == [
        f"The superseded key {former.label} was already gone."
    ]


async def test_an_emergency_waits_for_no_overlap_and_no_use(world: FakeWorld) -> None:
    """Every older key is revoked at once: those in their overlap, those in use, and those that are disabled."""
    await rotated_twice(world, **UNUSED, revoke="disable-then-delete")
    world.later(days=8)
    await world.retire()
    await world.rotate()
    former = [key.label for key in world.openrouter.keys.values()]
    for key in list(world.openrouter.keys.values()):
        world.spend(key, "0.1")

    message = await world.rotate(emergency=True)

    assert list(world.openrouter.keys) == [(await world.held()).hash]
    assert world.ledger.superseded == ()
    assert f"; revoked {', '.join(former)}; no superseded keys." in message


async def test_what_an_emergency_could_not_revoke_is_revoked_by_the_next_run_without_delay(world: FakeWorld) -> None:
    """A key whose deletion failed in an emergency does not get its quiet time or its disabled time back."""
    await rotated_twice(world, **UNUSED, revoke="disable-then-delete")
    world.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await world.failure(world.rotate(emergency=True))
    world.app.state.faults.clear()

    await world.retire()

    assert list(world.openrouter.keys) == [(await world.held()).hash]


async def test_a_key_that_becomes_due_while_another_one_is_revoked_gets_a_retirement(world: FakeWorld) -> None:
    """Given a revocation that takes longer than the overlap of the next key, that key's end is not lost."""
    await rotated_twice(world)
    world.change(overlap=timedelta(minutes=1))
    world.later(days=2)

    async def slow(run: Run, key: Superseded, destinations: Sequence[str]) -> None:
        await PLAIN.revoke_key(run, key, destinations)
        world.later(minutes=2)

    await follow_protocol(world.open(), world.rotation, PLAIN._replace(revoke_key=slow))

    assert world.superseded.revoke_at < world.time
    assert world.superseded.revoke_at in world.retirements


async def test_each_retirement_is_scheduled_once_however_many_keys_are_in_their_overlap(world: FakeWorld) -> None:
    """A rotation finds those of earlier ones, so its cost does not grow with the keys that wait."""
    for _ in range(5):
        world.later(hours=1)
        await world.rotate()

    assert len(world.retirements) == len(set(world.retirements)) == 4
