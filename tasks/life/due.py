"""Revoke the superseded keys that are due, and schedule the retirement of the others."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from datetime import datetime

from blocks.errors import DestinationError, KeyRotationError, OtherRunError, OverwrittenError
from tasks.key.budget import settle_budget
from tasks.key.unrecorded import settle_unresolved
from tasks.model.decisions import emergency_is_done, has_work, keys_due
from tasks.steps import Steps
from tasks.world.consumers import where_keys_are_read
from tasks.world.retirements import schedule_retirements
from tasks.world.run import Run


async def retire_older_keys(run: Run, steps: Steps) -> None:
    """Do what is due for a run that publishes nothing, wherever the ledger and the deployment say that keys are read.

    Where nothing is due, no destination is read.

    Args:
        run: The run, whose ledger is loaded.
        steps: The implementations of the steps.
    """
    current, now = run.ledger.current, run.world.now()
    if current:
        run.connection, run.destinations = current.connection, current.destinations
    run.step = "recover"
    await settle_unresolved(run)
    run.step = "revoke-key"
    run.is_idle = not (run.notes or run.ledger.removed or has_work(run.ledger, run.identity, now))
    # Without a current key it is unknown which destinations still hold the older ones, unless the rotation was removed.
    if run.is_idle:
        await schedule_retirements(run, now)
    elif current is not None or run.ledger.removed:
        await revoke_what_is_due(run, steps)


async def revoke_what_is_due(run: Run, steps: Steps, published: Iterable[str] = ()) -> None:
    """Revoke the superseded keys that are due, schedule the others' retirement, and settle a carried budget.

    This run may publish to fewer destinations than its deployment names, whose consumers read the others, too.

    Args:
        run: The run.
        steps: The implementations of the steps.
        published: This run's destinations, in addition to those at which consumers may read a key.
    """
    now = run.world.now()
    # On a Retry of the emergency, keys superseded after it, by a restore for example, keep their overlap.
    if run.identity.emergency and not emergency_is_done(run.ledger, run.identity, now):
        await run.write(run.ledger.hastened(now))
    outcomes = [] if run.identity.emergency else [await failure_of(settle_budget(run))]
    due = keys_due(run.ledger, run.identity, now)
    destinations = sorted({*published, *await where_keys_are_read(run, due)}) if due else []
    outcomes += [await failure_of(steps.revoke_key(run, key, destinations)) for key in due]
    if run.identity.emergency or _no_write_can_come(run, now):
        outcomes.append(await failure_of(require_current_everywhere(run, now)))
    await schedule_retirements(run, now)
    if failures := [*run.failures, *(failure for failure in outcomes if failure)]:
        overwritten = any(isinstance(failure, OverwrittenError) for failure in failures)
        raise (OverwrittenError if overwritten else DestinationError).combine(failures)


async def failure_of(work: Awaitable[None]) -> KeyRotationError | None:
    """Return the failure of one of several independent actions; only a `OtherRunError` stops the others."""
    try:
        await work
    except OtherRunError:
        raise
    except KeyRotationError as error:
        return error
    return None


async def require_current_everywhere(run: Run, now: datetime) -> None:
    """Check the current key's destinations: a late write may have restored a key that an emergency has revoked.

    An emergency checks at once, and any later run once no such write can come any more.

    Args:
        run: The run.
        now: The time, UTC, before the destinations are read; if no write can come after it, nobody looks again.

    Raises:
        OverwrittenError: A destination holds another key than the current one.
    """
    current = run.ledger.current
    if current is not None:
        found = await run.read_existing_destinations(current.destinations)
        others = sorted(name for name, content in found.items() if content != current.fingerprint)
        if others:
            raise OverwrittenError(
                f"The current key {current.label} is not in {', '.join(others)}: it was overwritten there after it was "
                "published. Start a new run, which publishes a new key there: a Retry does not."
            )
    if _no_write_can_come(run, now):
        await run.record(run.ledger.looked_again())


def _no_write_can_come(run: Run, now: datetime) -> bool:
    """Return whether the last of the late writes that were expected can no longer come."""
    until = run.ledger.late_writes_until
    return until is not None and until <= now
