"""A rotation's slot, for which its runs queue; an emergency goes first.

The slot only orders runs. Safety comes from the ledger: a run that loses its slot continues, and the slot of a run that
has died is reclaimed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import uniform
from uuid import UUID

import httpx
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse, GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger

from blocks.errors import OtherRunError, ServiceError
from tasks.world.api import OWN_TAG, api_errors
from tasks.world.gate import sent_once, watched_client
from tasks.world.slots import RunAtWork, note_waiting, runs_at_work

WAIT_SECONDS = 300.0
"""How long a run waits for another run of the same rotation to end."""
LOOK_AFTER_SECONDS = 45.0
"""How long a run waits before it checks whether the slot's holder is still running."""
LOOK_AGAIN_SECONDS = 5.0
"""How long to confirm that a slot has no holder: a run that has just taken it is still marked as waiting."""
SHORTEST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 2.0
"""The interval, chosen at random within these bounds, at which a waiting run checks whether the slot is free."""
REQUEST_SECONDS = 30.0
"""The timeout of a request for a slot, the repetitions by Prefect's client included."""
LEASE_SECONDS = 60.0
"""How long a killed run's slot stays taken; the shortest lease that Prefect allows."""
RENEW_AFTER_SECONDS = 20.0
"""How long after a renewal the next one is sent; after one without an answer, that is still before the lease ends."""
RENEW_AGAIN_SECONDS = 5.0
"""How long after a renewal that failed the next one is sent."""
STEP_BACK_SECONDS = 5.0
"""The interval at which a waiting run checks whether an emergency is over."""


def slot_of(rotation: str) -> str:
    """Return the name of a rotation's concurrency limit; no rotation's name contains an underscore."""
    return f"{OWN_TAG}_{rotation}"


def emergency_slot_of(rotation: str) -> str:
    """Return the name of the concurrency limit that an emergency holds; while it does, other runs give way."""
    return f"{OWN_TAG}_{rotation}_emergency"


def may_reclaim(limit: str, own: RunAtWork, others: list[RunAtWork]) -> bool:
    """Return whether nobody holds a slot, and this run is the first of the waiting ones, which reclaims it."""
    return all(other.waits_for == limit and own.precedence < other.precedence for other in others)


class Slot:
    """A rotation's slot, from the view of one flow run.

    Args:
        rotation: The rotation's name.
        run: The flow run.
        emergency: Whether it is an emergency.
        sleep: Waits for a number of seconds.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        rotation: str,
        run: FlowRun,
        *,
        emergency: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rotation = rotation
        self._run = run
        self._is_emergency = emergency
        self._sleep = sleep
        self._now = now
        self._began = now()
        self.notes: list[str] = []
        """What was repaired, for the rotation's artifact."""

    async def take(self, stack: AsyncExitStack) -> None:
        """Wait for the slot, and hold it until the stack is closed.

        Raises:
            OtherRunError: Another run of the rotation held the slot for too long.
            ServiceError: Prefect's API failed.
        """
        if self._is_emergency:
            await self._enter(stack, emergency_slot_of(self._rotation))
            await self._enter(stack, slot_of(self._rotation))
            return
        while True:
            async with AsyncExitStack() as attempt:
                await self._enter(attempt, slot_of(self._rotation))
                if not await self._emergency_is_at_work():
                    stack.push_async_exit(attempt.pop_all())
                    return
            self._require_time()
            await self._sleep(STEP_BACK_SECONDS)

    async def _emergency_is_at_work(self) -> bool:
        limit = emergency_slot_of(self._rotation)
        if not await _is_taken(limit):
            return False
        if self._waited() < LOOK_AFTER_SECONDS or await self._others_that_may_hold(limit):
            return True
        await self._take_back(limit)
        return False

    async def _others_that_may_hold(self, limit: str) -> list[RunAtWork]:
        others = await runs_at_work(self._rotation, but=self._run.id)
        return [run for run in others if run.is_emergency or limit == slot_of(self._rotation)]

    async def _enter(self, stack: AsyncExitStack, limit: str) -> None:
        if await _got(stack, limit):
            return
        await note_waiting(self._run, limit)
        await self._until_free(limit)
        while not await _got(stack, limit):
            await self._until_free(limit)
        await note_waiting(self._run, "")

    async def _until_free(self, limit: str) -> None:
        own = RunAtWork(str(self._run.id), self._is_emergency, limit)
        looks_at, had_no_holder = LOOK_AFTER_SECONDS, False
        while True:
            self._require_time()
            # Randomised, so that waiting runs do not poll in step.
            await self._sleep(uniform(SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS))  # noqa: S311 - no secret depends on it
            if await _is_free(limit):
                return
            if self._waited() < looks_at:
                continue
            has_no_holder = may_reclaim(limit, own, await self._others_that_may_hold(limit))
            if has_no_holder and had_no_holder:
                await self._take_back(limit)
                return
            looks_at, had_no_holder = self._waited() + LOOK_AGAIN_SECONDS, has_no_holder

    def _waited(self) -> float:
        return self._now() - self._began

    def _require_time(self) -> None:
        if self._waited() >= WAIT_SECONDS:
            raise OtherRunError(
                f"Another run of rotation {self._rotation} was still running after {WAIT_SECONDS:.0f} seconds."
            )

    async def _take_back(self, limit: str) -> None:
        # With Prefect's default lease storage, a server restart loses the lease, and the slot stays taken forever.
        client = watched_client()
        with suppress(ObjectNotFound), api_errors(f"reclaiming the slot {limit}"):
            await client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=0))
        self.notes.append(f"The slot {limit} was reclaimed: the run that held it is no longer running.")


async def _is_taken(limit: str) -> bool:
    found = await _read_limit(limit, "looking for an emergency")
    return found is not None and found.active_slots > 0


async def _is_free(limit: str) -> bool:
    # Prefect grants slots of an inactive limit.
    found = await _read_limit(limit, "waiting for the rotation's slot")
    return found is None or not found.active or found.active_slots < found.limit


async def _read_limit(limit: str, doing: str) -> GlobalConcurrencyLimitResponse | None:
    client = watched_client()
    try:
        with api_errors(doing):
            return await client.read_global_concurrency_limit_by_name(limit)
    except ObjectNotFound:
        return None


async def _got(stack: AsyncExitStack, limit: str) -> bool:
    granted = await _granted_or_made(limit)
    if granted is None:
        return False
    if not granted.limits:
        raise ServiceError(f"Prefect's API failed while taking the slot {limit}.", retryable=True)
    await stack.enter_async_context(_leased(limit, granted.lease_id))
    return True


async def _granted_or_made(limit: str) -> ConcurrencyLimitWithLeaseResponse | None:
    # The limit may not exist, or somebody may have left it no slot; any other failure may pass at once.
    with suppress(ServiceError):
        granted = await _granted(limit)
        if granted is None or granted.limits:
            return granted
    await _make_limit(limit)
    return await _granted(limit)


async def _granted(limit: str) -> ConcurrencyLimitWithLeaseResponse | None:
    asking = asyncio.ensure_future(_ask_for(limit))
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        # The server may grant the slot all the same, and nobody else would release it.
        with suppress(ServiceError):
            if (granted := await asking) and granted.limits:
                await _release(limit, granted.lease_id)
        raise


async def _ask_for(limit: str) -> ConcurrencyLimitWithLeaseResponse | None:
    # Prefect's own `concurrency` makes three clients for each slot, which nobody watches: on SQLite, their requests
    # wait for seconds after a refusal. And it renews each lease at once.
    client = watched_client()
    with api_errors(f"taking the slot {limit}"):
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await client.increment_concurrency_slots_with_lease([limit], 1, "concurrency", LEASE_SECONDS)
        except TimeoutError:
            return None
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.LOCKED:
                return None
            raise
        return ConcurrencyLimitWithLeaseResponse.model_validate(answer.json())


@asynccontextmanager
async def _leased(limit: str, lease_id: UUID) -> AsyncIterator[None]:
    renewal = asyncio.create_task(_renew(limit, lease_id))
    try:
        yield
    finally:
        renewal.cancel()
        await _release(limit, lease_id)


async def _renew(limit: str, lease_id: UUID) -> None:
    has_ended, wait = False, RENEW_AFTER_SECONDS
    while not has_ended:
        await asyncio.sleep(wait)
        wait = RENEW_AFTER_SECONDS
        try:
            async with sent_once(f"renewing the lease of the slot {limit}") as client:
                try:
                    await client.renew_concurrency_lease(lease_id, LEASE_SECONDS)
                except httpx.HTTPStatusError as error:
                    has_ended = error.response.status_code == httpx.codes.GONE
                    raise
        except ServiceError as error:
            wait = RENEW_AGAIN_SECONDS
            get_run_logger().warning("%s The run continues: it needs the slot only for its turn.", error)


async def _release(limit: str, lease_id: UUID) -> None:
    try:
        with api_errors(f"releasing the slot {limit}"):
            async with asyncio.timeout(REQUEST_SECONDS):
                await watched_client().release_concurrency_slots_with_lease(lease_id)
    except ServiceError as error:
        # The run has done its work, and the lease expires by itself.
        get_run_logger().warning("%s It is free again within a minute, when its lease has ended.", error)


async def _make_limit(limit: str) -> None:
    client = watched_client()
    with suppress(ObjectAlreadyExists), api_errors("creating the rotation's slot"):
        await client.upsert_global_concurrency_limit_by_name(limit, 1)
