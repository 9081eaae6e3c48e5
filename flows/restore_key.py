"""Restore a superseded key that a destination still stores."""

from __future__ import annotations

from typing import Annotated

from prefect import State

from blocks.errors import ConfigurationError
from flows.forms import form_field
from flows.runs import conclude, open_run
from flows.show.sentences import restored, superseded_since
from tasks.key.lists import carry_over
from tasks.life.due import retire_older_keys, revoke_what_is_due
from tasks.life.restore import enable, find_restorable, make_current_again
from tasks.model.decisions import rotated_since
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run, gather_all
from tasks.world.secrecy import secret_flow


@secret_flow("restore-key")
async def restore_key(
    rotation: Annotated[str, form_field("Rotation")], label: Annotated[str, form_field("Key label")] = ""
) -> State[None]:
    """Restore a superseded key: enable it, publish it to all destinations, and supersede the current key.

    The key must not be deleted yet, and a destination must still store it, as Vault does in a secret's older versions.

    Args:
        rotation: Name of the rotation.
        label: Label of the key, such as sk-or-v1-0e6...1c96. Empty restores the most recently superseded key.

    Returns:
        The final state; its message describes the result.
    """
    async with conclude() as conclusion, open_run(str(rotation), conclusion) as run:
        conclusion.succeeded(await restore(run, str(label), AS_TASKS))
    return conclusion.state


async def restore(run: Run, label: str, steps: Steps) -> str:
    """Restore a superseded key, whatever state the last run left, and return the final message.

    Args:
        run: The run.
        label: The key's label; empty for the most recently superseded key.
        steps: The implementations of the steps.

    Raises:
        KeyRotationError: The key could not be restored; the current key stays live.
    """
    current = (await run.load()).current
    if not run.has_ledger:
        why = "does not exist, was removed or has never run"
        raise ConfigurationError(f"rotation: {run.name} {why}. Nothing was changed.")
    if current is None or current.rotated_by != run.identity.id:
        if rotated_since(run.ledger, run.identity, run.world.now()):
            run.leaves_other_tries = True
            before = run.ledger.superseded
            await retire_older_keys(run, steps)
            return superseded_since(run, before)
        key = await find_restorable(run, label)
        destinations = current.destinations if current else ()
        run.step = "enable the key"
        enabled = await enable(run, key)
        run.step = "carry over"
        await carry_over(run, key.record, inherit=True)
        run.step = "publish"
        await gather_all([steps.publish(run, enabled, name) for name in destinations])
        run.step = "write the ledger"
        await make_current_again(run, enabled)
    run.step = "revoke-key"
    await revoke_what_is_due(run, steps)
    return restored(run)
