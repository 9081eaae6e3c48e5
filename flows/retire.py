"""Revoke the superseded keys whose overlap has ended."""

from __future__ import annotations

from typing import Annotated

from prefect import State

from blocks.errors import ConfigurationError
from flows.forms import form_field
from flows.runs import conclude, open_run
from flows.show.sentences import retired
from tasks.life.due import retire_older_keys
from tasks.life.remove import forget_when_nothing_is_left
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow


@secret_flow("retire")
async def retire(rotation: Annotated[str, form_field("Rotation")]) -> State[None]:
    """Revoke the superseded keys of a rotation whose overlap has ended.

    Each rotation with an overlap schedules a run of this flow for the end of the overlap. Cancelling that run in the
    dashboard keeps the superseded key alive until the next rotation or the next run of `retire/retire`.

    Args:
        rotation: Name of the rotation.

    Returns:
        The final state; its message describes the result.
    """
    async with conclude() as conclusion, open_run(str(rotation), conclusion) as run:
        conclusion.succeeded(await retire_due(run, AS_TASKS))
    return conclusion.state


async def retire_due(run: Run, steps: Steps) -> str:
    """Revoke the keys that are due, whatever state the last run left, and return the final message.

    Raises:
        KeyRotationError: A key could not be revoked; it stays in the ledger.
    """
    before = (await run.load()).superseded
    if not run.has_ledger:
        raise ConfigurationError(f"rotation: {run.name} does not exist or has never run. Nothing was revoked.")
    await retire_older_keys(run, steps)
    message = retired(run, before)
    await forget_when_nothing_is_left(run)
    return message
