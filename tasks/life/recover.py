"""The start of a run: read the ledger and the destinations, and recover from an interrupted run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta

from pydantic import SecretStr

from blocks.destination import Content, Destination
from blocks.errors import (
    ConfigurationError,
    ConflictError,
    DestinationError,
    KeyRotationError,
    OtherAccountError,
    ServiceError,
    concerning,
)
from tasks.key.unrecorded import settle_intent, settle_unresolved, unrecorded_keys
from tasks.life.adopt import adopt
from tasks.model.decisions import NOTHING_TO_PUBLISH, UNREADABLE, Situation, assess, expires_too_soon
from tasks.model.keys import KEY_PREFIX, fingerprint, label_agrees, may_be_replaced
from tasks.model.ledger import Ledger
from tasks.model.places import is_same
from tasks.model.records import Superseded
from tasks.model.room import has_room_for_next
from tasks.model.rotation import Rotation
from tasks.model.times import show_time
from tasks.verify import can_be_finished
from tasks.world.consumers import where_keys_are_read
from tasks.world.destinations import MAX_WRITES, hold_same_key, holds
from tasks.world.ports import KeyReader
from tasks.world.run import NewKey, Run

Revoke = Callable[[Run, Superseded, list[str]], Awaitable[None]]


async def observe(run: Run, rotation: Rotation) -> Situation:
    """Read the connection, the destinations and the ledger, before anything is changed.

    Raises:
        KeyRotationError: The connection, a destination or the ledger cannot be used; nothing was changed.
    """
    run.connection, run.destinations = rotation.connection, rotation.destinations
    ledger = await run.load()
    if not run.has_ledger or ledger.removed:
        await run.world.check_deployment()
    await run.world.load_blocks(rotation.destinations, rotation.connection)
    await run.world.connection(rotation.connection)
    expires = rotation.key.expires_after or (ledger.current and ledger.current.expires_at)
    interval = await run.world.longest_interval() if expires else timedelta(0)
    _check_expiry(rotation, interval)
    fingerprints = await run.read_destinations(rotation.destinations, ledger.where_pending())
    known = ledger if run.has_ledger else None
    situation = assess(known, run.identity, fingerprints, run.world.now(), rotation.minimum_age)
    if situation is Situation.TOO_YOUNG and (why := await _why_replaced(run, rotation, interval)):
        situation = Situation.NOTHING_PENDING
        run.note(f"The current key {why}, so it was replaced before its time.")
    if situation not in NOTHING_TO_PUBLISH:
        _refuse_to_overwrite(run, rotation, fingerprints)
    return situation


async def _why_replaced(run: Run, rotation: Rotation, interval: timedelta) -> str | None:
    if not await _current_works(run, rotation):
        return "did not work any more"
    if expires_too_soon(run.ledger, run.identity, run.world.now(), rotation.time_to_replace(interval)):
        return "would expire before the next run could replace it"
    return None


async def _current_works(run: Run, rotation: Rotation) -> bool:
    # A young key that was deleted by hand must be replaced, whatever the minimum age.
    openrouter: KeyReader = await run.world.connection(rotation.connection)
    secret = run.contents[rotation.destinations[0]].value
    return secret is not None and bool(await openrouter.accepts(secret))


def _check_expiry(rotation: Rotation, interval: timedelta) -> None:
    try:
        rotation.check_expiry(interval)
    except ValueError as error:
        raise ConfigurationError(f"rotation.{error}. Nothing was created.") from None


def _known_fingerprints(run: Run) -> set[str | None]:
    return {key.fingerprint for key in run.ledger.made_keys()} | {UNREADABLE, None}


def is_key_among(secrets: Mapping[str, SecretStr]) -> bool:
    """Return whether one of these secrets is an OpenRouter key."""
    return any(secret.get_secret_value().startswith(KEY_PREFIX) for secret in secrets.values())


def values_in_the_way(run: Run, fingerprints: Mapping[str, str | None], overwrite: Collection[str] = ()) -> list[str]:
    """Return the destinations in which a key would replace a value that is no key, and that nobody has given up.

    Args:
        run: The run, whose ledger is loaded.
        fingerprints: What each destination holds, as the run has read it.
        overwrite: Those whose values may be lost.
    """
    # A destination that has held this rotation's key is overwritten, whatever is in it now: anything else is an outage.
    current, known = run.ledger.current, _known_fingerprints(run)
    where = current.where() if current else {}
    ours = {name for name, place in where.items() if not place or is_same(place, run.places.get(name, ""))}
    return [
        name
        for name, found in fingerprints.items()
        if name not in {*overwrite, *ours} and found not in known and not may_be_replaced(run.contents[name].value)
    ]


def _refuse_to_overwrite(run: Run, rotation: Rotation, fingerprints: Mapping[str, str | None]) -> None:
    own = {name: fingerprints[name] for name in rotation.destinations}
    if others := values_in_the_way(run, own, rotation.overwrite):
        raise ConfigurationError(
            "rotation.overwrite: the first key would replace a value that is not an OpenRouter key in "
            f"{', '.join(others)}. Choose another destination, or, if that value may be lost, name that destination in "
            "overwrite. Nothing was created."
        )


def unknown_secrets(run: Run, rotation: Rotation) -> dict[str, SecretStr]:
    """Return the content of destinations that is neither in the ledger nor about to be adopted."""
    known = _known_fingerprints(run)
    held = {name: run.contents[name].value for name in rotation.destinations}
    return {
        name: secret
        for name, secret in held.items()
        if secret is not None and fingerprint(secret) not in known and not _to_be_adopted(run, rotation, name)
    }


def _to_be_adopted(run: Run, rotation: Rotation, name: str) -> bool:
    return rotation.adopt is not None and run.ledger.current is None and run.contents[name].value is not None


async def recover(run: Run, rotation: Rotation, situation: Situation, revoke: Revoke) -> NewKey | None:
    """Clean up after an earlier run, or an earlier attempt of this one.

    Returns:
        A half-published key to finish; `None` if a new key is needed.

    Raises:
        KeyRotationError: The recovery failed; the next run tries again.
    """
    if situation is not Situation.ALREADY_ROTATED:
        # Must come first: the steps below delete keys by their markers, even one that is published but unrecorded.
        await _take_up_unrecorded_keys(run, rotation, situation)
    await settle_unresolved(run)
    match situation:
        case Situation.INTENT_WITHOUT_KEY:
            await settle_intent(run)
        case Situation.KEY_UNPUBLISHED:
            await _discard_pending(run, rotation, revoke)
        case Situation.KEY_GIVEN_UP:
            await _give_pending_up(run, rotation)
        case Situation.KEY_PUBLISHED:
            if half_published := await _finish_pending(run, rotation):
                return half_published
    await adopt(run, rotation)
    if situation is not Situation.ALREADY_ROTATED and not _has_room(run, rotation, run.ledger):
        await _make_room(run, rotation, revoke)
    return None


def _has_room(run: Run, rotation: Rotation, ledger: Ledger) -> bool:
    return has_room_for_next(ledger, rotation, run.identity.id, run.places, run.world.now())


async def _make_room(run: Run, rotation: Rotation, revoke: Revoke) -> None:
    now = run.world.now()
    if run.identity.emergency:
        await run.write(run.ledger.hastened(now))
    due = run.ledger.due(now)
    read = {*rotation.destinations, *await where_keys_are_read(run, due)}
    for key in due:
        try:
            await revoke(run, key, sorted(read))
        except (DestinationError, ServiceError, ConfigurationError) as error:
            run.note(f"A superseded key is still alive: {error}")


async def _take_up_unrecorded_keys(run: Run, rotation: Rotation, situation: Situation) -> None:
    found: list[Superseded] = []
    unknown = unknown_secrets(run, rotation)
    # An unknown key in a destination is the only sign from which a run can tell that its ledger is outdated.
    if situation is Situation.FIRST_RUN or is_key_among(unknown):
        revoke_at, workspace_id = run.world.now() + rotation.overlap, rotation.key.workspace_id
        found = await unrecorded_keys(run, rotation.connection, revoke_at, workspace_id)
    # If there is not room for all, keys that destinations hold come first.
    found.sort(key=lambda key: not any(label_agrees(key.label, secret) for secret in unknown.values()))
    ledger, taken = run.ledger, list[Superseded]()
    for key in found:
        if _has_room(run, rotation, ledger.with_unrecorded([*taken, key])):
            taken.append(key)
    if taken:
        what = "lost" if situation is Situation.FIRST_RUN else "out of date"
        labels = ", ".join(key.label for key in taken)
        run.note(f"The ledger was {what}; keys of this rotation were found again and will be revoked: {labels}.")
        await run.write(ledger.with_unrecorded(taken))
    if left := len(found) - len(taken):
        run.note(
            f"The ledger has no room for further keys of this rotation ({left}): audit with repair, which settles them."
        )
    for name, secret in unknown.items():
        if not any(label_agrees(key.label, secret) for key in found):
            run.note(f"{name} held a secret that this rotation did not make; it was replaced there and is not revoked.")


async def _discard_pending(run: Run, rotation: Rotation, revoke: Revoke) -> None:
    if not await _fence_pending_off(run):
        await _supersede_pending(run, rotation)
        return
    late_until = run.ledger.late_until(run.world.now())
    await run.write(run.ledger.pending_given_up(run.world.now(), at_once=True, late_until=late_until))
    key = run.ledger.superseded[-1]
    if late_until is not None:
        run.note(
            f"The unpublished key {key.label} of an earlier run is kept until {show_time(late_until)}, because a "
            "write of it may still be under way."
        )
        return
    try:
        await revoke(run, key, rotation.destinations)
    except (ConfigurationError, ServiceError) as error:
        if not (run.concerns_former_connection(key.connection, error) or isinstance(error, OtherAccountError)):
            raise
        run.note(f"An unpublished key of an earlier run is still alive: {error}")


async def _give_pending_up(run: Run, rotation: Rotation) -> None:
    await _fence_pending_off(run)
    await _supersede_pending(run, rotation)


async def _supersede_pending(run: Run, rotation: Rotation) -> None:
    now, emergency = run.world.now(), run.identity.emergency
    revoke_at = now if emergency else now + rotation.overlap
    late_until = run.ledger.late_until(now)
    places = run.places_of(rotation.destinations)
    await run.write(run.ledger.pending_given_up(revoke_at, at_once=emergency, late_until=late_until, places=places))


async def _fence_pending_off(run: Run) -> bool:
    """Keep every write of the pending key out; return whether that is certain, also where the rotation has left."""
    # Writing the next term keeps the attempt that made the key from starting another write; the fence rejects one in
    # flight. Only then may the key be deleted: it can no longer reach a destination.
    await run.write(run.ledger)
    certain = True
    for name, content in run.contents.items():
        try:
            with concerning(name):
                await _fence(await run.world.destination(name), content)
        except KeyRotationError as error:
            # Whatever it is, it may last: where the rotation has left, nobody might ever repair it.
            if not run.has_left(name):
                raise
            certain = False
            run.note(f"{name} is no destination of this run and cannot be written: {error}")
    run.contents.clear()
    return certain


async def _fence(destination: Destination, content: Content) -> None:
    for _ in range(MAX_WRITES):
        try:
            await destination.fence(content)
        except ConflictError as error:
            lost, before, content = error, content, await destination.read_content()
            if not hold_same_key(before, content):
                break
        else:
            return
    raise lost


async def _finish_pending(run: Run, rotation: Rotation) -> NewKey | None:
    pending = run.ledger.pending
    if pending is None or pending.key is None:
        return None
    secret = next(content.value for content in run.contents.values() if holds(content, pending.key.fingerprint))
    key = NewKey(secret, pending.key) if secret else None
    try:
        fit = key is not None and await can_be_finished(run, rotation, key)
    except (ConfigurationError, ServiceError) as error:
        if not run.concerns_former_connection(pending.connection, error):
            raise
        run.note(f"A half-published key was given up: {error}")
        fit = False
    if not fit:
        await _give_pending_up(run, rotation)
        return None
    # Writing the next term locks out the attempt that made the key, but its last write may still take effect.
    await run.write(run.ledger.continued(run.places_of(rotation.destinations)))
    run.has_late_writes = True
    return key
