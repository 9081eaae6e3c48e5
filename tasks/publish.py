"""Publish a verified key to one destination, and read it back."""

from __future__ import annotations

from random import uniform

from blocks.destination import Content, Destination
from blocks.errors import ConflictError, DestinationError, ServiceError, concerning
from tasks.model.events import Event
from tasks.world.destinations import MAX_WRITES, hold_same_key, holds
from tasks.world.run import Run, VerifiedKey

FIRST_WAIT_SECONDS = 0.1
TIMES_LONGER = 4.0
"""The factor between two consecutive waits; all waits together outlast a locked database."""
LONGEST_WAIT_SECONDS = 10.0
"""The longest wait requested by a store after which a write is still retried in this run."""


async def publish(run: Run, key: VerifiedKey, destination: str) -> None:
    """Write a key to a destination, unless the destination holds it already.

    Raises:
        OtherRunError: Another run has taken over; nothing was written.
        ConflictError: Somebody else has changed the secret meanwhile.
        DestinationError: The destination does not hold the key after it was written.
        ServiceError: The destination failed.
    """
    opened = await run.world.destination(destination)
    with concerning(destination):
        await _publish(run, key, destination, opened)


async def _publish(run: Run, key: VerifiedKey, name: str, destination: Destination) -> None:
    content = run.contents.get(name) or await destination.read_content()
    if holds(content, key.record.fingerprint):
        return
    for attempt in range(MAX_WRITES):
        failure = await _write(run, destination, key, content)
        before, content = content, await destination.read_content()
        if _has_arrived(key, content):
            await run.world.emit(Event.KEY_PUBLISHED, run.name, **key.record.as_payload(), destination=name)
            return
        if attempt == MAX_WRITES - 1 or not _may_retry(failure, before, content):
            break
        await run.world.sleep(_wait_seconds(attempt, failure))
    raise failure or DestinationError(
        f"{name} does not hold the new key {key.record.label} after it was written there."
    )


async def _write(run: Run, destination: Destination, key: VerifiedKey, content: Content) -> ServiceError | None:
    written_by = {
        "key_rotation": run.name,
        "key_label": key.record.label,
        "flow_run": str(run.identity.id),
        "written_at": run.world.now().isoformat(timespec="seconds"),
    }
    try:
        # The ledger is checked after the old content was read: a run that was overtaken since then must not write.
        await run.write_to(destination, key.secret, content, written_by)
    except ServiceError as error:
        # The read-back shows whether the write took effect, even if its answer was lost or it was applied twice.
        if not (error.outcome_unknown or error.retryable or isinstance(error, ConflictError)):
            raise
        run.has_late_writes |= error.outcome_unknown
        return error
    return None


def _may_retry(failure: ServiceError | None, before: Content, now: Content) -> bool:
    if failure is None or not hold_same_key(before, now):
        return False
    return isinstance(failure, ConflictError) or (
        failure.retryable and (failure.retry_after or 0.0) <= LONGEST_WAIT_SECONDS
    )


def _wait_seconds(attempt: int, failure: ServiceError | None) -> float:
    # Jitter, so that runs that failed together do not retry together.
    own = uniform(0.5, 1.0) * FIRST_WAIT_SECONDS * TIMES_LONGER**attempt  # noqa: S311 - no secret
    asked = failure.retry_after if failure else None
    return own + (asked or 0.0)


def _has_arrived(key: VerifiedKey, content: Content) -> bool:
    return holds(content, key.record.fingerprint)
