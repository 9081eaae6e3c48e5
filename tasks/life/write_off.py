"""Write off a key that nobody can revoke any more."""

from __future__ import annotations

from blocks.errors import (
    ConfigurationError,
    ForbiddenError,
    MissingBlockError,
    NotFoundError,
    OtherAccountError,
    RejectedError,
    UnauthorizedError,
)
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.records import Pending, Superseded, Unresolved
from tasks.model.room import MAX_LEDGER_BYTES, largest_size
from tasks.model.written_off import MAX_WRITTEN_OFF, WrittenOff, write_off
from tasks.world.account import confirm_gone, has_workspace
from tasks.world.ports import KeyReader
from tasks.world.run import Run

OUT_OF_REACH = (MissingBlockError, UnauthorizedError, ForbiddenError, OtherAccountError)
"""Errors which show that a key cannot be revoked through its connection, and that waiting does not help."""


async def write_key_off(run: Run, label: str, reason: str) -> WrittenOff:
    """Remove a key from the ledger, after confirming that it cannot be revoked.

    Args:
        run: The run, whose ledger is loaded.
        label: The label or hash of a superseded key, or the id of a run whose create has an unknown outcome.
        reason: Why, as a person has put it.

    Returns:
        The entry about the key.

    Raises:
        ConfigurationError: The ledger holds no such key, or it can be revoked; nothing was changed.
        OtherRunError: Another run has taken over.
        ServiceError: A call failed, so it is unknown whether the key can be revoked; nothing was changed.
    """
    if done := next((entry for entry in run.ledger.written_off if entry.by == run.identity.id), None):
        return done
    found = _find(run, label)
    await _refuse_what_can_be_revoked(run, found)
    entry = WrittenOff(
        hash=found.hash if isinstance(found, Superseded) else "",
        label=found.label if isinstance(found, Superseded) else str(found.run_id),
        connection=found.connection,
        reason=reason,
        at=run.world.now(),
        by=run.identity.id,
    )
    await run.write(_without(run.ledger, entry))
    await run.world.emit(Event.KEY_WRITTEN_OFF, run.name, **entry.as_payload())
    return entry


def _without(ledger: Ledger, entry: WrittenOff) -> Ledger:
    # In a full ledger, its keys take precedence over entries about keys that were written off.
    after = [write_off(ledger, entry, remembered) for remembered in range(MAX_WRITTEN_OFF, -1, -1)]
    return next((each for each in after if largest_size(each) <= MAX_LEDGER_BYTES), after[-1])


def _find(run: Run, label: str) -> Superseded | Pending | Unresolved:
    ledger = run.ledger
    keys = [key for key in ledger.superseded if label in (key.label, key.hash)]
    if len(keys) > 1:
        raise ConfigurationError(
            "label: several superseded keys have this label; give the key's hash instead, as the ledger shows it. "
            "Nothing was changed."
        )
    pending = [ledger.pending] if ledger.pending and ledger.pending.key is None else []
    lost: list[Pending | Unresolved] = [*pending, *ledger.unresolved]
    found: list[Superseded | Pending | Unresolved] = [*keys, *(each for each in lost if label == str(each.run_id))]
    if not found:
        raise ConfigurationError(
            f"label: the ledger of rotation {run.name} has no superseded key with this label or hash, and no run with "
            "this id that may have left a key behind. The current key can be written off only once it is superseded. "
            "Nothing was changed."
        )
    return found[0]


async def _refuse_what_can_be_revoked(run: Run, found: Superseded | Pending | Unresolved) -> None:
    try:
        if isinstance(found, Superseded):
            what = await _look_at(await run.world.connection(found.connection), found)
        else:
            what = await _look_for(run, found)
    except OUT_OF_REACH as error:
        run.note(f"It could not be revoked: {error}")
        return
    raise ConfigurationError(f"label: {what}. Nothing was changed.")


async def _look_at(openrouter: KeyReader, key: Superseded) -> str:
    try:
        await openrouter.get_key(key.hash)
    except NotFoundError:
        await confirm_gone(openrouter, key)
        return f"the key {key.label} does not exist any more: run retire/retire, which takes it out of the ledger"
    return f"the key {key.label} can be revoked: run retire/retire, or wait for the end of its overlap"


async def _look_for(run: Run, lost: Pending | Unresolved) -> str:
    openrouter: KeyReader = await run.world.connection(lost.connection)
    try:
        async for _key in openrouter.list_keys(lost.workspace_id):
            break
    except (NotFoundError, RejectedError) as error:
        if await has_workspace(run, lost.connection, lost.workspace_id):
            raise
        raise OtherAccountError(str(error)) from None
    return f"run {lost.run_id} may have left a key behind, which can still be looked for: run rotate or retire"
