"""Retirement by use, not only by clock; and emergencies, which wait for nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.server import Fault
from tasks.model.events import Event
from tests.tasks.conftest import Life

UNUSED = {"retire_when": "unused", "quiet_time": timedelta(hours=2), "max_overlap": timedelta(days=7)}


async def rotated_twice(life: Life, **retirement: object) -> None:
    """A rotation with a superseded key in its overlap."""
    life.change(retirement=retirement)
    await life.rotate()
    await life.rotate()


async def test_by_default_the_end_of_the_overlap_is_enough(life: Life) -> None:
    """A superseded key that is still used dies with its overlap."""
    await rotated_twice(life)
    former = life.key(life.superseded.hash)
    life.later(hours=24)
    life.spend(former, "0.5")

    await life.retire()

    assert former.hash in life.openrouter.deleted


async def test_an_unused_key_is_revoked_after_its_quiet_time(life: Life) -> None:
    """With `unused`, a key that nobody uses dies once the quiet time since its overlap has passed, and not before."""
    await rotated_twice(life, **UNUSED)
    former = life.superseded.hash
    life.later(hours=24)
    await life.retire()
    after_overlap = former in life.openrouter.deleted

    life.time = life.retirements[-1]
    await life.retire()

    assert (after_overlap, former in life.openrouter.deleted) == (False, True)
    assert life.retirements[-1] - timedelta(hours=2) == life.ledger.current.since + timedelta(hours=24)  # type: ignore[union-attr]


@pytest.mark.parametrize("with_last_used_at", [True, False], ids=["last_used_at", "usage sums"])
async def test_a_used_key_is_postponed_with_growing_waits_until_it_is_quiet(
    life: Life, with_last_used_at: bool
) -> None:
    """As long as the key is used its revocation waits, longer each time; a quiet time later it is revoked."""
    life.openrouter.with_last_used_at = with_last_used_at
    await rotated_twice(life, **UNUSED)
    former = life.key(life.superseded.hash)
    life.later(hours=24)
    waits = []
    for _ in range(4):
        life.spend(former, "0.25")
        await life.retire()
        waits.append(life.retirements[-1] - life.time)
        life.time = life.retirements[-1]
    alive_while_used = former.hash in life.openrouter.keys

    await life.retire()
    life.time = max(life.retirements[-1], life.time)
    await life.retire()

    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
    assert alive_while_used
    assert former.hash in life.openrouter.deleted


async def test_a_postponement_is_told_with_label_and_latest_usage(life: Life) -> None:
    """The event and the report name the key's label and what it has spent; the run's message says until when."""
    await rotated_twice(life, **UNUSED)
    former = life.key(life.superseded.hash)
    life.later(hours=24)
    life.spend(former, "0.25")

    message = await life.retire()

    told = [payload for event, payload in life.events if event is Event.KEY_REVOCATION_POSTPONED]
    assert [payload["key_label"] for payload in told] == [former.label]
    assert "0.25 USD" in life.notes[0]
    assert former.label in life.notes[0]
    assert f"{life.retirements[-1]:%Y-%m-%d %H:%M} UTC" in message


@pytest.mark.parametrize(("on_still_used", "dies"), [("revoke", True), ("keep", False)])
async def test_after_the_longest_overlap_it_is_done_as_chosen(life: Life, on_still_used: str, dies: bool) -> None:
    """A key that is still used after its longest overlap is revoked, or kept with a loud failure."""
    await rotated_twice(life, **UNUSED, on_still_used=on_still_used)
    former = life.key(life.superseded.hash)
    life.later(days=7)
    life.spend(former, "0.25")

    sentence = await life.retire() if dies else await life.failure(life.retire())

    assert (former.hash in life.openrouter.deleted) is dies
    assert former.label in sentence
    assert ("still used after its longest overlap" in sentence) is not dies


async def test_no_postponement_goes_beyond_the_longest_overlap(life: Life) -> None:
    """The last look is at the very end of the longest overlap."""
    await rotated_twice(life, **UNUSED)
    former = life.key(life.superseded.hash)
    since = life.superseded.since
    life.later(hours=24)
    while former.hash in life.openrouter.keys:
        life.spend(former, "0.1")
        await life.retire()
        last, life.time = life.time, max(life.time, life.retirements[-1])

    assert since is not None
    assert last == since + timedelta(days=7)


async def test_a_key_that_was_deleted_by_hand_is_not_waited_for(life: Life) -> None:
    """A superseded key that is gone at OpenRouter is dropped from the ledger."""
    await rotated_twice(life, **UNUSED)
    life.openrouter.delete_key(life.key(life.superseded.hash))
    life.later(hours=24)

    await life.retire()

    assert life.ledger.superseded == ()


async def test_an_emergency_waits_for_no_overlap_and_no_use(life: Life) -> None:
    """Every older key is dead at once: those in their overlap, those still used, and those that are disabled."""
    await rotated_twice(life, **UNUSED, revoke="disable-then-delete")
    life.later(days=8)
    await life.retire()
    await life.rotate()
    for key in list(life.openrouter.keys.values()):
        life.spend(key, "0.1")

    await life.rotate(emergency=True)

    assert list(life.openrouter.keys) == [(await life.held()).hash]
    assert life.ledger.superseded == ()


async def test_what_an_emergency_could_not_revoke_is_revoked_by_the_next_run_without_delay(life: Life) -> None:
    """A key whose deletion failed in an emergency is not given its quiet time or its disabled time back."""
    await rotated_twice(life, **UNUSED, revoke="disable-then-delete")
    life.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await life.failure(life.rotate(emergency=True))
    life.app.state.faults.clear()

    await life.retire()

    assert list(life.openrouter.keys) == [(await life.held()).hash]
