"""Questions about an OpenRouter account: whether a key is gone from it, and whether it has a workspace."""

from __future__ import annotations

from blocks.errors import MissingBlockError, NotFoundError, OtherAccountError, RejectedError
from tasks.model.records import MadeKey
from tasks.world.optional import Part, if_available, listed
from tasks.world.ports import KeyReader, OpenRouter
from tasks.world.run import Run

OR_WRITE_OFF = "If that cannot be done any more, write the key off with write-off-key."
"""The remaining option for a key that nobody can revoke."""


async def confirm_gone(openrouter: KeyReader, key: MadeKey) -> None:
    """Verify that a key is gone: its connection must still belong to the account that made it.

    Args:
        openrouter: The key's connection, which has answered that there is no such key.
        key: The key.

    Raises:
        OtherAccountError: The connection belongs to another account now.
        ServiceError: OpenRouter failed.
    """
    # After the management key was exchanged for another account's, OpenRouter also answers "no such key".
    if key.workspace_id is not None and not await knows_workspace(openrouter, key.workspace_id):
        raise OtherAccountError(
            f"The connection {key.connection} does not know the key {key.label} nor its workspace: the workspace was "
            "deleted, or the connection belongs to another account now. If its management key is another "
            f"account's, put in one of the former account, so that the key can be revoked. {OR_WRITE_OFF}"
        )


async def open_account_of(run: Run, key: MadeKey) -> OpenRouter:
    """Open the connection through which a key can be revoked.

    Raises:
        MissingBlockError: The connection was deleted.
        ServiceError: Prefect's API failed.
    """
    try:
        return await run.world.connection(key.connection)
    except MissingBlockError:
        raise MissingBlockError(
            f"The key {key.label} cannot be revoked, because its connection {key.connection} was deleted. Make a "
            "connection of that name again, with a management key of the account in which the key was made. "
            f"{OR_WRITE_OFF}"
        ) from None


async def has_workspace(run: Run, connection: str, workspace_id: str | None) -> bool:
    """Return whether a connection's account has a workspace; `False` if its id is unknown."""
    return workspace_id is not None and await knows_workspace(await run.world.connection(connection), workspace_id)


async def knows_workspace(openrouter: KeyReader, workspace_id: str) -> bool:
    """Return whether a connection's account has a workspace."""
    if await if_available(Part.WORKSPACES, openrouter.workspace(workspace_id)) is not None:
        return True
    if await if_available(Part.WORKSPACES, listed(openrouter.list_workspaces())) is not None:
        return False
    # If the account does not list its workspaces, look for a key in this one.
    try:
        return any(key.workspace_id == workspace_id for key in await listed(openrouter.list_keys(workspace_id)))
    except (NotFoundError, RejectedError):
        return False


async def guardrail_of(run: Run, connection: str, key_hash: str) -> str | None:
    """Return a key's guardrail; `None` if it has none, or if the account shows no guardrails."""
    openrouter: KeyReader = await run.world.connection(connection)
    return await if_available(Part.GUARDRAILS, openrouter.guardrail_of(key_hash), run.note)
