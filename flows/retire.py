"""The end of an overlap: revoke the superseded keys that are due."""

from __future__ import annotations

from prefect import State

from blocks.errors import ConfigurationError
from flows.runs import conclude, open_run
from flows.show.sentences import retired
from tasks.key.unrecorded import settle_unresolved
from tasks.life.due import revoke_what_is_due, where_keys_are_read
from tasks.life.remove import forget_when_nothing_is_left
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow


@secret_flow("retire")
async def retire(rotation: str) -> State[None]:
    """Revoke the superseded keys of a rotation whose overlap has ended.

    A rotation with an overlap schedules a run of this flow for the moment when the overlap ends. Cancelling that run in
    the dashboard keeps the superseded key alive until the next rotation or the next run of `retire/retire`.

    Args:
        rotation: The name of the rotation.

    Returns:
        The final state, whose message says in one sentence what happened.
    """
    async with conclude() as conclusion, open_run(str(rotation), False, conclusion) as run:
        conclusion.succeeded(await retire_due(run, AS_TASKS))
    return conclusion.state


async def retire_due(run: Run, steps: Steps) -> str:
    """Revoke what is due, from whatever state the last run left.

    Args:
        run: The run.
        steps: How each step is done.

    Returns:
        What happened, in one sentence.

    Raises:
        KeyRotationError: A key could not be revoked; it stays in the ledger.
    """
    before = (await run.load()).superseded
    if not run.has_ledger:
        raise ConfigurationError(f"rotation: there is no rotation {run.name} that has ever run. Nothing was revoked.")
    current = run.ledger.current
    run.connection = current.connection if current else ""
    run.step = "recover"
    await settle_unresolved(run)
    run.step = "revoke-key"
    # Without a current key nobody knows where the older ones are still read, unless the rotation was taken away.
    if current is not None or run.ledger.removed:
        await revoke_what_is_due(run, await where_keys_are_read(run), steps)
    message = retired(run, before)
    await forget_when_nothing_is_left(run)
    return message
