"""Bring back a superseded key, where a destination still keeps it."""

from __future__ import annotations

from prefect import State

from blocks.errors import ConfigurationError
from flows.runs import conclude, open_run
from flows.show.sentences import restored, superseded_since
from tasks.life.due import revoke_what_is_due, where_keys_are_read
from tasks.life.restore import enable, find_restorable, make_current_again
from tasks.model.decisions import rotated_since
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run, gather_all
from tasks.world.secrecy import secret_flow


@secret_flow("restore-key")
async def restore_key(rotation: str, label: str = "") -> State[None]:
    """Let consumers have a superseded key again: enable it, publish it everywhere, supersede the one that it replaces.

    It works as long as the key was not deleted and a destination keeps it, as Vault does in its older versions.

    Args:
        rotation: The name of the rotation.
        label: The label of the key, such as sk-or-v1-0e6...1c96; empty for the one that was superseded last.

    Returns:
        The final state, whose message says in one sentence what happened.
    """
    async with conclude() as conclusion, open_run(str(rotation), False, conclusion) as run:
        conclusion.succeeded(await restore(run, str(label), AS_TASKS))
    return conclusion.state


async def restore(run: Run, label: str, steps: Steps) -> str:
    """Bring a superseded key back, from whatever state the last run left.

    Args:
        run: The run.
        label: The key's label; empty for the one that was superseded last.
        steps: How each step is done.

    Returns:
        What happened, in one sentence.

    Raises:
        KeyRotationError: It could not be brought back; the current key stays as it is.
    """
    current = (await run.load()).current
    if not run.has_ledger:
        raise ConfigurationError(f"rotation: there is no rotation {run.name} that has ever run. Nothing was changed.")
    if current is None or current.rotated_by != run.identity.id:
        if rotated_since(run.ledger, run.identity):
            return superseded_since(run)
        key = await find_restorable(run, label)
        destinations = current.destinations if current else ()
        run.step = "enable the key"
        enabled = await enable(run, key)
        run.step = "publish"
        await gather_all([steps.publish(run, enabled, name) for name in destinations])
        run.step = "write the ledger"
        await make_current_again(run, key.record)
    run.step = "revoke-key"
    await revoke_what_is_due(run, await where_keys_are_read(run), steps)
    return restored(run)
