"""Remove a rotation: settle its keys and close its ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from pydantic import SecretStr

from blocks.errors import ConfigurationError, DestinationError, NotFoundError, concerning
from tasks.key.unrecorded import settle_intent, settle_unresolved
from tasks.model.events import Event
from tasks.model.keys import NOT_YET_ROTATED, fingerprint, without_marker
from tasks.model.ledger import Ledger
from tasks.model.places import NO_PLACES
from tasks.model.records import Current
from tasks.model.times import show_time
from tasks.world.account import confirm_gone
from tasks.world.run import WRITE_SECONDS, Run, gather_all


def plan_removal(ledger: Ledger, rotation: str, revoke_at: datetime | None, *, empty: bool) -> list[str]:
    """Return the steps of a removal, in sentences.

    Args:
        ledger: The rotation's ledger.
        rotation: The rotation's name.
        revoke_at: When every key must be revoked, UTC; `None` to keep the current one permanently.
        empty: Whether to empty the destinations.
    """
    current = ledger.current
    steps = [f"Delete the deployment rotate/{rotation} with its schedule."]
    if current and revoke_at is None:
        steps.append(f"Keep the key {current.label} at OpenRouter; nobody rotates or revokes it any more.")
    elif current and revoke_at is not None:
        names = ", ".join(current.destinations)
        if empty:
            steps.append(f"Empty {names}: write `{NOT_YET_ROTATED}` in place of the key.")
        steps.append(f"Delete the key {current.label} at OpenRouter at {show_time(revoke_at)}.")
        if not empty:
            steps.append(f"Leave that key, which then no longer works, in {names}.")
    steps += expiry_before(current, revoke_at)
    steps += [
        f"Delete the superseded key {key.label} at {show_time(min(key.revoke_at, revoke_at or key.revoke_at))}."
        for key in ledger.superseded
    ]
    return steps


def expiry_before(current: Current | None, end: datetime | None) -> list[str]:
    """Return the sentence about a key that a removed rotation keeps, if it expires before its end.

    Args:
        current: The rotation's last key, if there is one.
        end: When it is to be revoked, UTC; `None` for never.
    """
    if current is None or current.expires_at is None or (end is not None and current.expires_at >= end):
        return []
    expiry = show_time(current.expires_at)
    return [f"The key {current.label} expires at {expiry}, and nobody replaces it: give its consumers another before."]


def refuse_what_came_back(run: Run) -> None:
    """Refuse a Retry of a removal if the rotation has rotated since: somebody may have added it again.

    Args:
        run: The run, whose ledger is loaded.

    Raises:
        ConfigurationError: It has rotated since the removal first started; nothing was changed.
    """
    current, pending = run.ledger.current, run.ledger.pending
    begun = [current and current.since, pending and pending.intended_at]
    if run.identity.attempt > 1 and any(at and at > run.identity.first_started for at in begun):
        raise ConfigurationError(
            f"rotation: {run.name} has rotated since this removal was first started, so it may have been added again. "
            "To remove it as it is now, start a new run. Nothing was changed."
        )


async def empty_destinations(run: Run) -> dict[str, str]:
    """Write a placeholder to each destination that holds a key of the rotation, so that nobody reads a dead key.

    A write of unknown outcome fails the run, whose Retry writes again; only the placeholder can arrive late.

    Args:
        run: The run, whose ledger is loaded.

    Returns:
        The destinations that hold no key of the rotation now, and where each one points.

    Raises:
        OtherRunError: Another run has taken over.
        DestinationError: A destination still holds a key.
        ServiceError: A destination failed; a Retry continues here.
    """
    ledger = run.ledger
    own = {key.fingerprint for key in ledger.made_keys()}
    # An unfinished rotation may have published to destinations that never held an earlier key.
    found = await run.read_existing_destinations(sorted(ledger.destinations()))
    holders = [name for name, held in found.items() if held in own]
    late = await run.longest_late_writes(holders)
    if late:
        # The removal may fail and the rotation be added again, and then a placeholder arrive.
        until = run.world.now() + late + len(holders) * timedelta(seconds=WRITE_SECONDS)
        await run.write(ledger.expecting_late_writes(until))
    await gather_all([_empty(run, name, own) for name in holders])
    return run.places_of(list(found))


async def _empty(run: Run, name: str, own: Collection[str]) -> None:
    destination = await run.world.destination(name)
    written_by = {"key_rotation": run.name, "key_label": "none", "flow_run": str(run.identity.id)}
    with concerning(name):
        await run.write_to(destination, SecretStr(NOT_YET_ROTATED), run.contents[name], written_by)
        if fingerprint((await destination.read_content()).value) in own:
            raise DestinationError(f"{name} still holds a key of the rotation after it was emptied.")


async def end_keys(run: Run, revoke_at: datetime | None, emptied: Mapping[str, str] = NO_PLACES) -> None:
    """Settle what is pending, and set the end of each key of the rotation.

    Args:
        run: The run, whose ledger is loaded.
        revoke_at: When every key must be revoked, UTC; `None` to keep the current one permanently.
        emptied: The destinations that no longer hold a key of the rotation, and where each one points.

    Raises:
        OtherRunError: Another run has taken over.
        ServiceError: OpenRouter failed; a Retry continues here.
    """
    await settle_intent(run)
    await settle_unresolved(run)
    ledger = run.ledger
    if revoke_at is not None:
        for sentence in expiry_before(ledger.current, revoke_at):
            run.warn(sentence)
        await run.write(ledger.with_every_key_ended(run.world.now(), revoke_at, emptied))
        return
    await _take_marker_off(run)
    await run.write(run.ledger.with_current_key_kept())


async def _take_marker_off(run: Run) -> None:
    # With its marker, an audit would report the kept key as an orphan.
    current = run.ledger.current
    if current is None:
        return
    openrouter = await run.world.connection(current.connection)
    await run.guard()
    try:
        name = without_marker((await openrouter.get_key(current.hash)).name)
        # No later run would give it the rest of its limit.
        limit = {"limit": current.terms.limit} if current.budget and current.terms else {}
        await openrouter.update_key(current.hash, name=name, **limit)
    except NotFoundError:
        await confirm_gone(openrouter, current)
        run.note(f"The key {current.label} does not exist at OpenRouter any more.")


async def forget_when_nothing_is_left(run: Run) -> bool:
    """Close the ledger of a removed rotation, once no key is left to revoke.

    Returns:
        Whether the ledger is closed.

    Raises:
        OtherRunError: Another run has taken over.
    """
    ledger = run.ledger
    if not ledger.removed or ledger.superseded or ledger.unresolved:
        return False
    # The last term stays: otherwise a run that was overtaken could create the next one and continue.
    await run.write(ledger.closed())
    await run.world.emit(Event.ROTATION_REMOVED, run.name)
    return True
