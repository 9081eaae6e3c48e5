"""A person's changes to a ledger in the dashboard: read, edit, delete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.variables import Variable

from tasks.model.ledger import Ledger
from tasks.world.ledgers import VariableStore, all_ledgers, term_variable


async def ledger_value(rotation: str) -> Any:
    """Return the value of the newest term; `None` without a ledger, or with a closed one."""
    return {name: value async for name, value in all_ledgers()}.get(rotation)


async def ledger_of(rotation: str) -> Ledger:
    """Return a rotation's ledger."""
    return Ledger.model_validate(await ledger_value(rotation))


async def edit_ledger(rotation: str, value: Any) -> None:
    """Overwrite the newest term, or create the first one."""
    terms = await VariableStore(rotation).newest()
    await Variable.aset(term_variable(rotation, terms[0].number if terms else 1), value, overwrite=True)


async def end_overlap(rotation: str) -> None:
    """Expire the overlap of every superseded key, so that the keys are due for revocation."""
    value = await ledger_value(rotation)
    for key in value["superseded"]:
        key["revoke_at"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await edit_ledger(rotation, value)


async def delete_ledger(rotation: str) -> None:
    """Delete every term; if only the newest ones were deleted, an earlier term would become the ledger."""
    store = VariableStore(rotation)
    while terms := await store.newest():
        await store.delete([term.number for term in terms if term.number])
        if not terms[0].number:
            return
