"""Revoke a superseded key, once nothing needs it any more."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.errors import DestinationError, OtherAccountError
from tasks.decisions import needed_by
from tasks.ledger import Superseded
from tasks.run import OpenRouter, Run
from tasks.task import secret_task


async def revoke_key(run: Run, key: Superseded, destinations: Sequence[str]) -> None:
    """Delete a superseded key at OpenRouter and drop it from the ledger.

    Args:
        run: The run.
        key: The key.
        destinations: Where consumers read the current key; none of them may hold this one.

    Raises:
        DestinationError: A destination still holds the key; it was not revoked.
        PlaceLostError: Another run has taken over; the key was not revoked.
        ServiceError: A destination or OpenRouter failed; the key stays in the ledger.
    """
    holders = needed_by(key, run.ledger.ledger, await run.look(destinations))
    if holders:
        raise DestinationError(
            f"The superseded key {key.label} was not revoked, because {', '.join(holders)} still holds it."
        )
    openrouter = await run.world.connection(key.connection)
    await run.ledger.guard()
    if not await openrouter.delete_key(key.hash):
        await _make_sure_that_it_is_gone(openrouter, key)
    await run.ledger.save(run.ledger.ledger.revoked(key.hash))


async def _make_sure_that_it_is_gone(openrouter: OpenRouter, key: Superseded) -> None:
    # "No such key" is also what another account answers, after the connection's management key was exchanged.
    if key.workspace_id is not None and not await openrouter.has_workspace(key.workspace_id):
        raise OtherAccountError(
            f"The connection {key.connection} does not know the key {key.label} nor its workspace: it seems "
            "to belong to another account now. Put the former management key back, so that the key can be revoked."
        )


revoke_key_task = secret_task("revoke-key")(revoke_key)
