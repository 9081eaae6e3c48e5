"""The lease of a rotation's slot: renewed while the run holds it, released when the run has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from flows import slot
from flows.slot import slot_of
from tasks.world.gate import DEADLINE_SECONDS
from tests.flows.limits import FakeLimits, status_error

SLOT = slot_of("checkout")


async def until(reached: Callable[[], bool]) -> None:
    """Let the other tasks run until something has happened."""
    for _ in range(10_000):
        if reached():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


@pytest.fixture
def _renewals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RENEW_AFTER_SECONDS", "RENEW_AGAIN_SECONDS"):
        monkeypatch.setattr(slot, name, 0.0)


@pytest.mark.usefixtures("_renewals_at_once")
async def test_a_slot_is_kept_until_the_run_has_ended(limits: FakeLimits) -> None:
    """Its lease is renewed as long as the run holds it, and not after it was released."""
    limit = limits.add(SLOT, taken=False)

    async with AsyncExitStack() as stack:
        await limits.slot().take(stack)
        await until(lambda: len(limits.renewed) > 2)
        assert limit.active_slots == 1
    renewed = len(limits.renewed)
    for _ in range(100):
        await asyncio.sleep(0)

    assert limit.active_slots == 0
    assert set(limits.renewed) == set(limits.released)
    assert len(limits.renewed) == renewed


@pytest.mark.usefixtures("_renewals_at_once")
@pytest.mark.parametrize("status", [404, 503])
async def test_a_renewal_that_failed_is_made_again(
    limits: FakeLimits, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A renewal may fail without the lease ending."""
    limits.add(SLOT, taken=False)

    async with AsyncExitStack() as stack:
        await limits.slot().take(stack)
        limits.failures = [status_error(status)]
        await until(lambda: len(limits.renewed) > 2)

    assert "failed while renewing the lease of the slot" in caplog.text


@pytest.mark.usefixtures("_renewals_at_once")
async def test_a_run_whose_lease_has_ended_goes_on(limits: FakeLimits, caplog: pytest.LogCaptureFixture) -> None:
    """The slot only keeps runs in order; the run says so in its log once, and does not ask any more."""
    limits.add(SLOT, taken=False)

    async with AsyncExitStack() as stack:
        await limits.slot().take(stack)
        limits.failures = [status_error(410)]
        await until(lambda: "The run continues" in caplog.text)
        for _ in range(100):
            await asyncio.sleep(0)

    assert len(limits.renewed) == 1


async def test_a_slot_that_cannot_be_released_fails_no_run(
    limits: FakeLimits, caplog: pytest.LogCaptureFixture
) -> None:
    """The run has done its work, and the log says when the slot is free again."""
    limits.add(SLOT, taken=False)

    async with AsyncExitStack() as stack:
        await limits.slot().take(stack)
        limits.failures = [httpx.ReadTimeout("no answer")]

    assert "It is free again within a minute" in caplog.text


async def test_a_slot_that_is_granted_to_a_cancelled_run_is_released(limits: FakeLimits) -> None:
    """The next run, perhaps the emergency for which it was cancelled, does not wait for the end of the lease."""
    limit = limits.add(SLOT, taken=False)
    limits.answers.clear()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            await limits.slot().take(stack)

    running = asyncio.create_task(run())
    await until(lambda: bool(limits.asked))
    running.cancel()
    await asyncio.sleep(0)
    limits.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert limit.active_slots == 0
    assert len(limits.released) == 1


def test_a_lease_outlives_a_renewal_without_an_answer() -> None:
    """The next renewal is sent before the lease ends."""
    assert slot.RENEW_AFTER_SECONDS + DEADLINE_SECONDS + slot.RENEW_AGAIN_SECONDS < slot.LEASE_SECONDS


async def test_a_cancelled_run_releases_its_slot(limits: FakeLimits) -> None:
    """The next run does not have to wait for the end of the lease."""
    limit = limits.add(SLOT, taken=False)
    holding = asyncio.Event()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            await limits.slot().take(stack)
            holding.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await holding.wait()
    assert limit.active_slots == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert limit.active_slots == 0
