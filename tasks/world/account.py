"""What is asked about an OpenRouter account: whether a key is gone from it, whether a workspace is in it."""

from __future__ import annotations

from blocks.errors import OtherAccountError
from tasks.model.ledger import MadeKey
from tasks.world.ports import KeyReader
from tasks.world.run import Run


async def confirm_gone(openrouter: KeyReader, key: MadeKey) -> None:
    """Believe that a key does not exist only if the connection still belongs to the account in which it was made.

    Args:
        openrouter: The key's connection, which has said that there is no such key.
        key: The key.

    Raises:
        OtherAccountError: The connection belongs to another account now.
        ServiceError: OpenRouter failed.
    """
    # "No such key" is also what another account answers, after the connection's management key was exchanged.
    if key.workspace_id is not None and not await openrouter.has_workspace(key.workspace_id):
        raise OtherAccountError(
            f"The connection {key.connection} does not know the key {key.label} nor its workspace: it seems "
            "to belong to another account now. Put the former management key back, so that the key can be revoked."
        )


async def has_workspace(run: Run, connection: str, workspace_id: str | None) -> bool:
    """Return whether a workspace is in a connection's account; `False` where it is not known which one is meant."""
    return workspace_id is not None and await (await run.world.connection(connection)).has_workspace(workspace_id)
