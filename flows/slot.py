"""A rotation's slot: its runs queue up for it, and an emergency goes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from prefect.client.utilities import get_or_create_client
from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError, concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger

from blocks.errors import PlaceLostError, ServiceError
from tasks.world.api import api_errors

SLOT_WAIT_SECONDS = 300.0
"""How long a run waits for another run of the same rotation to end."""
SLOT_LEASE_SECONDS = 60.0
"""How long the slot of a killed run stays taken; Prefect allows no less."""
STEP_BACK_SECONDS = 5.0
"""How long a run waits before it looks again whether an emergency is over."""


async def take_slot(stack: AsyncExitStack, name: str, *, emergency: bool) -> None:
    """Wait for the slot of a rotation, and hold it until the stack is closed; an emergency goes first."""
    limit, emergencies = f"key-rotation-{name}", f"key-rotation-{name}-emergency"
    if emergency:
        # Held from now on, it makes every other run that waits for the rotation's slot step back.
        await _enter(stack, emergencies, name)
        await _enter(stack, limit, name)
        return
    for _ in range(round(SLOT_WAIT_SECONDS / STEP_BACK_SECONDS)):
        async with AsyncExitStack() as attempt:
            await _enter(attempt, limit, name)
            if not await _is_taken(emergencies):
                stack.push_async_exit(attempt.pop_all())
                return
        await asyncio.sleep(STEP_BACK_SECONDS)
    raise PlaceLostError(f"An emergency of rotation {name} was still at work after {SLOT_WAIT_SECONDS:.0f} seconds.")


async def _enter(stack: AsyncExitStack, limit: str, name: str) -> None:
    for was_made in (False, True):
        try:
            await stack.enter_async_context(_slot(limit))
        except AcquireConcurrencySlotTimeoutError:
            raise PlaceLostError(
                f"Another run of rotation {name} was still at work after {SLOT_WAIT_SECONDS:.0f} seconds."
            ) from None
        except ConcurrencySlotAcquisitionError:
            if was_made:
                raise ServiceError(f"Prefect's API failed while taking the slot {limit}.", retryable=True) from None
            await _make_limit(limit)
        else:
            return


async def _is_taken(limit: str) -> bool:
    client, _ = get_or_create_client()
    try:
        with api_errors("looking for an emergency"):
            return (await client.read_global_concurrency_limit_by_name(limit)).active_slots > 0
    except ObjectNotFound:
        return False


@asynccontextmanager
async def _slot(limit: str) -> AsyncIterator[None]:
    task = asyncio.current_task()
    cancelled_before = task.cancelling() if task else 0
    ended = False
    try:
        async with concurrency(
            limit, occupy=1, timeout_seconds=SLOT_WAIT_SECONDS, lease_duration=SLOT_LEASE_SECONDS, strict=True
        ):
            yield
            ended = True
    except asyncio.CancelledError:
        # Prefect cancels what is inside when it could not renew the lease, and takes its request to cancel back.
        # One that is still there came from a person or from the worker.
        if task is None or task.cancelling() > cancelled_before:
            raise
        raise PlaceLostError(
            f"This run lost its hold on {limit}, because Prefect's server did not renew it in time, so it stopped."
        ) from None
    except Exception as error:
        if not ended:
            raise
        # What was done is done, and the lease ends by itself.
        get_run_logger().warning(
            "The slot %s was not given back (%s): it ends in a minute.", limit, type(error).__name__
        )


async def _make_limit(limit: str) -> None:
    client, _ = get_or_create_client()
    with suppress(ObjectAlreadyExists), api_errors("making the rotation's slot"):
        await client.upsert_global_concurrency_limit_by_name(limit, 1)
