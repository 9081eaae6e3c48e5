"""Carry a budget over, so that a rotation within a period does not grant the full limit a second time."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from blocks.errors import ConfigurationError, NotFoundError, ServiceError
from blocks.openrouter.keys import ApiKey
from tasks.model.decisions import needed_by
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.records import Budget, Current, Superseded
from tasks.model.terms import Terms, period_end
from tasks.model.times import show_time
from tasks.world.account import confirm_gone
from tasks.world.consumers import where_keys_are_read
from tasks.world.ports import KeyChanger
from tasks.world.run import Run


def carried_budget(former: ApiKey, earlier: Budget | None, terms: Terms, now: datetime) -> Budget | None:
    """Compute how much of the next key's limit is already spent.

    Args:
        former: The replaced key, as OpenRouter shows it.
        earlier: The budget that this key itself carried from its predecessors.
        terms: The terms of the next key.
        now: The current time, UTC.

    Returns:
        The carried budget; `None` for a fresh one: there is no limit, or its reset has changed.
    """
    if terms.limit is None or former.limit_reset != terms.limit_reset:
        return None
    spent = _carried(earlier, now) + former.spent(terms.limit_reset)
    return Budget(carried=spent, ends_at=period_end(terms.limit_reset, now))


def _carried(budget: Budget | None, now: datetime) -> Decimal:
    return budget.carried if budget and budget.runs(now) else Decimal(0)


async def settle_budget(run: Run) -> None:
    """Cap superseded keys with a carried budget at what they have spent, and give the current key exactly the rest.

    A key that consumers still read, or that a late write may bring back, keeps its limit; otherwise they would have no
    working key.

    Raises:
        OtherRunError: Another run has taken over.
        ServiceError: OpenRouter failed; the next run continues here.
    """
    for former in run.ledger.superseded:
        if former.capped is False and not await _may_be_read(run, former):
            try:
                await _cap_at_spent(run, former)
            except (ConfigurationError, ServiceError) as error:
                if not run.concerns_former_connection(former.connection, error):
                    raise
                run.note(f"The key {former.label} is not capped, and its connection cannot be used: {error}")
    await restore_budget(run)


async def _may_be_read(run: Run, former: Superseded) -> bool:
    if not (former.left_at or former.late_until):
        return False
    if former.late_until and former.late_until > run.world.now():
        run.note(
            f"The key {former.label} keeps its limit until {show_time(former.late_until)}, because a write of it may "
            "still be under way."
        )
        return True
    names = sorted(await where_keys_are_read(run, [former]))
    holders = needed_by(former, run.held(await run.read_existing_destinations(names)))
    if holders:
        run.note(f"The key {former.label} keeps its limit, because it is still held by {', '.join(holders)}.")
    return bool(holders)


async def _cap_at_spent(run: Run, former: Superseded) -> None:
    openrouter = await run.world.connection(former.connection)
    await run.guard()
    capped = None
    try:
        capped = await openrouter.update_key(former.hash, **_cap(await openrouter.get_key(former.hash)))
    except NotFoundError:
        await confirm_gone(openrouter, former)
        run.note(f"The key {former.label} is gone already, so what it spent last is not known exactly.")
    ledger = run.ledger.changed(former.hash, capped=True)
    if capped is not None:
        ledger = await _give_the_rest(run, ledger, former, capped)
    await run.record(ledger)


async def _give_the_rest(run: Run, ledger: Ledger, former: Superseded, capped: ApiKey) -> Ledger:
    current, now = ledger.current, run.world.now()
    if current is None or current.terms is None or current.budget is None or current.since != former.since:
        return ledger
    if not current.budget.runs(now):
        return ledger
    carried = _carried(former.budget, now) + capped.spent(current.terms.limit_reset)
    if carried != current.budget.carried:
        await _set_limit(run, current, carried)
    return ledger.current_changed(budget=Budget(carried=carried, ends_at=current.budget.ends_at))


def _cap(key: ApiKey) -> dict[str, Any]:
    # Without a reset, the cap must hold beyond the period: the key's total spending is all that it may ever spend.
    return {"limit": key.spent(None), "limit_reset": None}


def is_spent(key: ApiKey) -> bool:
    """Return whether a key may never spend anything any more, as under a cap."""
    return key.limit is not None and key.limit_reset is None and key.limit <= key.spent(None)


async def _set_limit(run: Run, current: Current, carried: Decimal) -> None:
    if current.terms is None or current.terms.limit is None:
        return
    openrouter: KeyChanger = await run.world.connection(current.connection)
    await run.guard()
    try:
        await openrouter.update_key(current.hash, limit=current.terms.request("-", carried).limit)
    except NotFoundError:
        run.note(f"The key {current.label} does not exist at OpenRouter any more: start a rotation.")


async def restore_budget(run: Run) -> None:
    """Give the current key its full limit again, once the period of its carried budget has ended.

    Raises:
        OtherRunError: Another run has taken over.
        ServiceError: OpenRouter failed; the next run continues here.
    """
    current = run.ledger.current
    if current is None or current.budget is None or current.budget.runs(run.world.now()):
        return
    await _set_limit(run, current, Decimal(0))
    await run.record(run.ledger.current_changed(budget=None))
    await run.world.emit(Event.BUDGET_RESTORED, run.name, **current.as_payload())
