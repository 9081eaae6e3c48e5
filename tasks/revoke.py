"""Revoke a superseded key once it is no longer needed."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from blocks.errors import DestinationError, NotFoundError
from tasks.key.lists import take_out
from tasks.key.usage import who_uses
from tasks.model.decisions import Judgement, Verdict, judge, needed_by
from tasks.model.events import Event
from tasks.model.former_places import left_with_nothing
from tasks.model.records import Superseded
from tasks.model.times import show_time
from tasks.world.account import confirm_gone, open_account_of
from tasks.world.ports import KeyReader, OpenRouter
from tasks.world.run import Run


async def revoke_key(run: Run, key: Superseded, destinations: Sequence[str]) -> None:
    """Revoke a superseded key as its rotation's policy requires: delete it, disable it, or wait until it is unused.

    Args:
        run: The run.
        key: The key, which is due.
        destinations: Where consumers read the current key; none of them may hold this one. Empty for a removed
            rotation, unless it was added again.

    Raises:
        DestinationError: A destination still holds the key, or the key is still used and is to be kept; it was not
            revoked.
        OtherRunError: Another run has taken over; the key was not revoked.
        ServiceError: A destination or OpenRouter failed; the key stays in the ledger.
    """
    policy = run.ledger.retirement
    await _refuse_where_held(run, key, destinations)
    openrouter = await open_account_of(run, key)
    asks_for_quiet = policy.retire_when == "unused" and not (key.at_once or key.disabled or key.revoking)
    if asks_for_quiet and await _still_used(run, openrouter, key):
        return
    # Announced first, so that nobody restores a key that is being revoked. Writing the next term locks out older runs.
    await run.record(run.ledger.changed(key.hash, revoking=True))
    may_return = policy.revoke == "disable-then-delete" and not (key.at_once or key.disabled)
    if not key.at_once:
        # OpenRouter refuses changes to a list with a dead key. A leaked key is not delayed by that.
        await take_out(run, key, may_return=may_return)
    await run.guard()
    if may_return:
        await _disable(run, openrouter, key)
        return
    if not await openrouter.delete_key(key.hash):
        await confirm_gone(openrouter, key)
        if not key.revoking:
            run.note(f"The superseded key {key.label} was already gone.")
    # Somebody may have written it back before the deletion; from now on, OpenRouter refuses that.
    await take_out(run, key)
    await run.record(run.ledger.revoked(key.hash))
    _warn_of_consumers_left(run, key)
    await run.world.emit(Event.KEY_REVOKED, run.name, **key.as_payload())


def _warn_of_consumers_left(run: Run, key: Superseded) -> None:
    if key.left_at:
        run.warn(left_with_nothing(key))


async def _refuse_where_held(run: Run, key: Superseded, destinations: Sequence[str]) -> None:
    found = await run.read_existing_destinations(destinations)
    holders = needed_by(key, run.held(found))
    if holders:
        raise DestinationError(
            f"The superseded key {key.label} was not revoked, because it is still held by {', '.join(holders)}."
        )
    published = run.ledger.served.destinations if run.ledger.served else ()
    unread = [name for name in destinations if name not in found and name not in published]
    # It is unknown where a key that was found again had been published.
    if unread and (key.left_at or not key.fingerprint):
        raise DestinationError(
            f"The superseded key {key.label} was not revoked, because {', '.join(unread)} may still hold it, and that "
            "block was deleted. Make the block again, or take it out of the rotation's destinations."
        )


async def _still_used(run: Run, openrouter: KeyReader, key: Superseded) -> bool:
    try:
        found = await openrouter.get_key(key.hash)
    except NotFoundError:
        await confirm_gone(openrouter, key)
        return False
    now = run.world.now()
    judgement = judge(key, run.ledger.retirement, found.usage + found.byok_usage, found.last_used_at, now)
    latest = f"its latest use seen was at {show_time(judgement.unused_since)}" if judgement.unused_since else ""
    match judgement.verdict:
        case Verdict.POSTPONE:
            await _postpone(run, openrouter, key, found.usage + found.byok_usage, judgement)
            return True
        case Verdict.KEEP:
            raise DestinationError(
                f"The superseded key {key.label} is still used after its longest overlap ({latest}), so it was kept."
                f"{await who_uses(run, openrouter, key)} Move its consumer to the current key, or run an emergency "
                "rotation, which revokes this key and also replaces and revokes the current one at once."
            )
        case Verdict.REVOKE:
            return False


async def _postpone(run: Run, openrouter: KeyReader, key: Superseded, usage: Decimal, judgement: Judgement) -> None:
    changes = {
        "revoke_at": judgement.check_again_at,
        "overlap_ends": key.overlap_ends or key.revoke_at,
        "postponed": key.postponed + 1,
        "usage": usage,
        "usage_since": judgement.unused_since,
    }
    await run.record(run.ledger.changed(key.hash, **changes))
    sentence = (
        f"The superseded key {key.label} may still be used (spent {usage} USD so far, unused only since "
        f"{judgement.unused_since:%Y-%m-%d %H:%M} UTC), so its revocation waits until "
        f"{judgement.check_again_at:%Y-%m-%d %H:%M} UTC.{await who_uses(run, openrouter, key)}"
    )
    run.note(sentence)
    await run.world.emit(Event.KEY_REVOCATION_POSTPONED, run.name, **key.as_payload(), sentence=sentence)


async def _disable(run: Run, openrouter: OpenRouter, key: Superseded) -> None:
    try:
        await openrouter.update_key(key.hash, disabled=True)
    except NotFoundError:
        await confirm_gone(openrouter, key)
        await run.record(run.ledger.revoked(key.hash))
        return
    until = run.world.now() + run.ledger.retirement.disabled_for
    await run.record(run.ledger.changed(key.hash, revoking=False, disabled=True, revoke_at=until))
    _warn_of_consumers_left(run, key)
    await run.world.emit(Event.KEY_DISABLED, run.name, **key.as_payload())
