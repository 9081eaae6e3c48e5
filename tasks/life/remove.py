"""Take a rotation away for good: what becomes of its keys, and of its ledger."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import NotFoundError
from tasks.key.unrecorded import settle_intent, settle_unresolved
from tasks.model.events import Event
from tasks.model.keys import without_marker
from tasks.world.account import confirm_gone
from tasks.world.run import Run


async def give_up_keys(run: Run, revoke_at: datetime | None) -> None:
    """Settle what is pending, and say when each key of the rotation ends.

    Args:
        run: The run, whose ledger is loaded.
        revoke_at: When no key may be alive any more, UTC; `None` to keep the current one for good.

    Raises:
        PlaceLostError: Another run has taken over.
        ServiceError: OpenRouter failed; a Retry goes on here.
    """
    await settle_intent(run)
    await settle_unresolved(run)
    ledger = run.ledger
    if revoke_at is not None:
        await run.write(ledger.given_up(run.world.now(), revoke_at))
        return
    await _take_marker_off(run)
    await run.write(run.ledger.left_to_its_user())


async def _take_marker_off(run: Run) -> None:
    # A kept key is the user's own again; with its marker an audit would take it for an orphan.
    current = run.ledger.current
    if current is None:
        return
    openrouter = await run.world.connection(current.connection)
    await run.guard()
    try:
        name = without_marker((await openrouter.get_key(current.hash)).name)
        # Nobody would give it the rest of its limit back later.
        limit = {"limit": current.terms.limit} if current.budget and current.terms else {}
        await openrouter.update_key(current.hash, name=name, **limit)
    except NotFoundError:
        await confirm_gone(openrouter, current)
        run.note(f"The key {current.label} does not exist at OpenRouter any more.")


async def forget_when_nothing_is_left(run: Run) -> bool:
    """Delete the ledger of a removed rotation, once no key is left that will have to be revoked.

    Args:
        run: The run.

    Returns:
        Whether it is gone.

    Raises:
        PlaceLostError: Another run has taken over.
    """
    ledger = run.ledger
    if not ledger.removed or ledger.superseded or ledger.unresolved:
        return False
    # The last term stays: a run that was overtaken could otherwise write the next one and go on.
    await run.write(ledger.closed())
    await run.world.emit(Event.ROTATION_REMOVED, run.name)
    return True
