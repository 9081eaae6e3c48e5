"""Publish a verified key to one destination, and read it back."""

from __future__ import annotations

from blocks.errors import ConflictError, DestinationError, ServiceError
from tasks.destinations import Destination
from tasks.events import Event
from tasks.ledger import fingerprint
from tasks.run import Run, VerifiedKey
from tasks.task import secret_task


async def publish(run: Run, key: VerifiedKey, destination: str) -> None:
    """Put a key into a destination; where it is already there, nothing is written.

    Args:
        run: The run.
        key: The key, verified.
        destination: The destination's name.

    Raises:
        PlaceLostError: Another run has taken over; nothing was written.
        DestinationError: The destination does not hold the key after it was written.
        ServiceError: The destination failed.
    """
    place = await run.world.destination(destination)
    held = run.held.get(destination) or await place.read()
    if fingerprint(held.value) == key.record.fingerprint:
        return
    await run.ledger.guard()
    written_by = {
        "key_rotation": run.name,
        "key_label": key.record.label,
        "flow_run": str(run.identity.id),
        "written_at": run.world.now().isoformat(timespec="seconds"),
    }
    failure: ServiceError | None = None
    try:
        await place.write(key.secret, held, written_by)
    except ServiceError as error:
        # A write whose answer was lost shows itself in the read-back; so does one that was made twice.
        if not (error.outcome_unknown or isinstance(error, ConflictError)):
            raise
        failure = error
    await _read_back(place, key, failure)
    await run.world.emit(Event.KEY_PUBLISHED, run.name, **key.record.told(), destination=destination)


async def _read_back(place: Destination, key: VerifiedKey, failure: ServiceError | None) -> None:
    held = await place.read()
    if fingerprint(held.value) == key.record.fingerprint:
        return
    if failure is not None:
        raise failure
    raise DestinationError(f"{place.name} does not hold the new key {key.record.label} after it was written there.")


publish_task = secret_task("publish")(publish)
