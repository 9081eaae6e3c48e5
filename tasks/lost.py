"""Find keys again whose creation was announced but never written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import UUID

from blocks.errors import ConfigurationError
from blocks.openrouter import ApiKey
from tasks.ledger import TURNS_UP_WITHIN, Pending, Superseded
from tasks.rotation import read_marker
from tasks.run import Run

LOOK_AGAIN_AFTER_SECONDS = 2.0
"""How long to wait before concluding that a marker is not there: one pass of an offset-based list can miss a key."""


async def settle_intent(run: Run, *, certain: bool = False) -> None:
    """End a pending intent whose key was never written down: find the key by its marker and delete it.

    Args:
        run: The run.
        certain: Whether OpenRouter has said that no key was created.

    Raises:
        ServiceError: OpenRouter failed; the intent stays pending.
    """
    intent = run.ledger.ledger.pending
    if intent is None or intent.key is not None:
        return
    # Signing the ledger keeps out an older attempt that may still be alive.
    await run.ledger.save(run.ledger.ledger)
    if certain or await _delete_intended(run, intent):
        await run.ledger.save(run.ledger.ledger.dropped())
    else:
        await run.ledger.save(run.ledger.ledger.left_unresolved())


async def _delete_intended(run: Run, intent: Pending) -> bool:
    try:
        return await _delete_marked(run, intent.connection, intent.workspace_id, {intent.run_id}, look_again=True)
    except ConfigurationError as error:
        # A connection that was taken away must not keep the rotation from going on with another one.
        run.note(f"Run {intent.run_id} may have left a key behind, and its connection cannot be used: {error}")
        return False


async def settle_unresolved(run: Run) -> None:
    """Look again for keys whose creation ended unknown in an earlier run, and delete those that turned up.

    Args:
        run: The run.

    Raises:
        ServiceError: OpenRouter failed.
    """
    for entry in run.ledger.ledger.unresolved:
        try:
            found = await _delete_marked(run, entry.connection, entry.workspace_id, {entry.run_id})
        except ConfigurationError as error:
            run.note(f"Run {entry.run_id} may have left a key behind, and its connection cannot be used: {error}")
            continue
        if found or run.world.now() - entry.since >= TURNS_UP_WITHIN:
            await run.ledger.save(run.ledger.ledger.resolved([entry]))


async def _delete_marked(
    run: Run, connection: str, workspace_id: str | None, run_ids: set[UUID], *, look_again: bool = False
) -> bool:
    explained = run.ledger.ledger.hashes()

    def ours(key: ApiKey) -> bool:
        mark = read_marker(key.name)
        return mark is not None and mark[0] == run.name and mark[1] in run_ids and key.hash not in explained

    openrouter = await run.world.connection(connection)
    found = await _search(run, connection, workspace_id, ours)
    if not found and look_again:
        await run.world.sleep(LOOK_AGAIN_AFTER_SECONDS)
        found = await _search(run, connection, workspace_id, ours)
    for key in found:
        await run.ledger.guard()
        await openrouter.delete_key(key.hash)
    return bool(found)


async def _search(
    run: Run, connection: str, workspace_id: str | None, wanted: Callable[[ApiKey], bool]
) -> Iterable[ApiKey]:
    openrouter = await run.world.connection(connection)
    return {key.hash: key async for key in openrouter.list_keys(workspace_id) if wanted(key)}.values()


async def keys_without_ledger(
    run: Run, connection: str, workspace_id: str | None, revoke_at: datetime
) -> list[Superseded]:
    """Find the keys that this rotation made before its ledger was lost.

    Another Prefect server may run a rotation of the same name in the same account, so only keys whose marker names a
    flow run that this server knows are taken up.

    Args:
        run: The run.
        connection: The rotation's connection.
        workspace_id: The rotation's workspace.
        revoke_at: When they are to be revoked.

    Returns:
        The keys, as superseded ones.

    Raises:
        ServiceError: OpenRouter or Prefect failed.
    """
    taken: list[Superseded] = []
    for key in await _search(
        run, connection, workspace_id, lambda key: (read_marker(key.name) or ("",))[0] == run.name
    ):
        mark = read_marker(key.name)
        if mark is None or not await run.world.knows_run(mark[1]):
            run.note(f"The key {key.label} carries this rotation's name but a run that is not known here: left alone.")
            continue
        taken.append(
            Superseded(
                hash=key.hash,
                label=key.label,
                fingerprint="",
                made_by=mark[1],
                connection=connection,
                workspace_id=key.workspace_id,
                revoke_at=revoke_at,
            )
        )
    return taken
