"""Find keys whose creation was announced but never recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from uuid import UUID

from blocks.errors import ConfigurationError, NotFoundError, RejectedError, ServiceError
from blocks.openrouter.keys import ApiKey
from tasks.model.decisions import UNREADABLE, needed_by
from tasks.model.keys import Marker, read_marker
from tasks.model.ledger import TURNS_UP_WITHIN
from tasks.model.records import Pending, Superseded, Unresolved
from tasks.model.times import show_time
from tasks.model.unrecorded import as_superseded
from tasks.world.account import has_workspace
from tasks.world.consumers import overlap_of, where_keys_are_read
from tasks.world.installation import made_here
from tasks.world.optional import Part, if_available, listed
from tasks.world.ports import KeyChanger, KeyReader
from tasks.world.run import Run

LOOK_AGAIN_AFTER_SECONDS = 2.0
"""How long to wait before a second search for a marker: a new key may not be listed at once."""


async def settle_intent(run: Run, *, certain: bool = False) -> None:
    """End a pending intent whose key was never recorded: find the key by its marker and delete it.

    Args:
        run: The run.
        certain: Whether OpenRouter has answered that no key was created.

    Raises:
        ServiceError: OpenRouter failed; the intent stays pending.
    """
    intent = run.ledger.pending
    if intent is None or intent.key is not None:
        return
    # Writing the next term locks out an earlier attempt that may still be running.
    await run.write(run.ledger)
    found = not certain and await _delete_left_behind(run, intent, search_again=True)
    # What was found may be the key of an earlier create of the same run.
    if certain or (found and not run.ledger.unresolved_with(intent)):
        await run.record(run.ledger.dropped())
    else:
        await run.record(run.ledger.left_unresolved())


async def settle_unresolved(run: Run) -> None:
    """Search again for the keys of creates with unknown outcome, and delete those that turned up.

    Raises:
        ServiceError: OpenRouter failed.
    """
    for entry in run.ledger.unresolved:
        found = await _delete_left_behind(run, entry)
        if (found and not entry.several) or (found is not None and run.world.now() - entry.since >= TURNS_UP_WITHIN):
            await run.record(run.ledger.resolved([entry]))


async def _delete_left_behind(run: Run, made: Pending | Unresolved, *, search_again: bool = False) -> bool | None:
    """Delete the key that a run may have left behind; `None` if its connection is gone and no search is possible."""
    try:
        return await _delete_marked(run, made.connection, made.workspace_id, made.run_id, search_again=search_again)
    except (ConfigurationError, ServiceError) as error:
        if not run.concerns_former_connection(made.connection, error):
            raise
        gone = error
    # The connection may only have been renamed.
    if run.connection and await _delete_marked(run, run.connection, made.workspace_id, made.run_id):
        return True
    run.note(
        f"Run {made.run_id} may have left a key behind, and the connection that it used cannot be used: {gone} If that "
        f"is for good, write the key off: run write-off-key with the label {made.run_id}."
    )
    return None


async def _delete_marked(
    run: Run, connection: str, workspace_id: str | None, run_id: UUID, *, search_again: bool = False
) -> bool:
    recorded = run.ledger.hashes()

    def ours(key: ApiKey) -> bool:
        mark = read_marker(key.name)
        return mark is not None and mark[:2] == (run.name, run_id) and key.hash not in recorded

    found = await _search(run, connection, workspace_id, ours)
    if not found and search_again:
        await run.world.sleep(LOOK_AGAIN_AFTER_SECONDS)
        found = await _search(run, connection, workspace_id, ours)
    # After a restore of Prefect's database, the ledger may wait for a key that was published meanwhile.
    by, now = Marker(run.name, run_id), run.world.now()
    ended = [await _delete_or_supersede(run, as_superseded(key, by, connection, now)) for key in found]
    return any(ended)


async def _delete_or_supersede(run: Run, key: Superseded) -> bool:
    """Delete a key that was left behind, or supersede it where nobody can tell; `False` if a destination holds it."""
    held = await _is_held(run, key)
    if held:
        return False
    if held is None and not run.identity.emergency:
        until = key.revoke_at + await overlap_of(run)
        run.note(f"The key {key.label} of a failed run ends at {show_time(until)}: a former destination may hold it.")
        await run.record(run.ledger.with_unrecorded([key.model_copy(update={"revoke_at": until})]))
        return True
    openrouter: KeyChanger = await run.world.connection(key.connection)
    await run.guard()
    await openrouter.delete_key(key.hash)
    if held is None:
        run.note(f"The key {key.label} of a failed run was deleted at once, although a former destination may hold it.")
    return True


async def _is_held(run: Run, key: Superseded) -> bool | None:
    """Return whether a destination holds a key; `None` if one that the rotation has left cannot be read."""
    names = {*run.ledger.destinations(), *await where_keys_are_read(run, [key])}
    former = set(filter(run.has_left, names))
    found = await run.read_existing_destinations(sorted(names - former), sorted(former))
    unknown = {name for name, content in found.items() if content == UNREADABLE}
    return bool(needed_by(key, run.held(found.keys() - unknown))) or (None if unknown else False)


async def _search(
    run: Run, connection: str, workspace_id: str | None, wanted: Callable[[ApiKey], bool]
) -> Collection[ApiKey]:
    openrouter: KeyReader = await run.world.connection(connection)
    try:
        return {key.hash: key async for key in openrouter.list_keys(workspace_id) if wanted(key)}.values()
    except (NotFoundError, RejectedError):
        # The workspace was deleted, or belongs to another account.
        if workspace_id is None or await has_workspace(run, connection, workspace_id):
            raise
        return ()


async def unrecorded_keys(run: Run, connection: str, revoke_at: datetime, workspace_id: str | None) -> list[Superseded]:
    """Find keys that this rotation made but its ledger does not know, in every workspace of the account.

    They exist if the ledger was lost, or is outdated because Prefect's database was restored. Keys that another
    installation made for a rotation of the same name are left alone. If the account does not list its workspaces, those
    that the rotation and its ledger name are searched.

    Args:
        run: The run.
        connection: The rotation's connection.
        revoke_at: When to revoke them.
        workspace_id: The workspace in the rotation's settings, if it names one.

    Returns:
        The keys as superseded ones, the newest first.

    Raises:
        ServiceError: OpenRouter or Prefect failed.
    """
    openrouter: KeyReader = await run.world.connection(connection)
    recorded = run.ledger.hashes()

    def ours_by_name(key: ApiKey) -> bool:
        mark = read_marker(key.name)
        return mark is not None and mark.rotation == run.name and key.hash not in recorded

    marked: dict[str, tuple[ApiKey, Marker]] = {}
    workspaces = await if_available(Part.WORKSPACES, listed(openrouter.list_workspaces()), run.note)
    named = sorted(filter(None, {workspace_id, *run.ledger.workspaces(connection)}))
    for workspace in [None, *named] if workspaces is None else workspaces:
        for key in await _search(run, connection, workspace, ours_by_name):
            if mark := read_marker(key.name):
                marked[key.hash] = key, mark
    ledgers = [value async for _, value in run.world.ledgers()] if marked else []
    ours = await made_here(run.world, [mark for _, mark in marked.values()], ledgers) if marked else set()
    for key, mark in marked.values():
        if mark not in ours:
            maker = f"the installation {mark.installation}" if mark.installation else "a run that is not known here"
            run.note(f"The key {key.label} carries this rotation's name, but was made by {maker}: it was left alone.")
    found = sorted(marked.values(), key=lambda each: each[0].created_at, reverse=True)
    return [as_superseded(key, mark, connection, revoke_at) for key, mark in found if mark in ours]
