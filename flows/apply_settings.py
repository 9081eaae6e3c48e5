"""Let a rotation's settings reach OpenRouter at once, without a new key."""

from __future__ import annotations

from prefect import State

from flows.runs import conclude, open_run
from flows.show.sentences import applied
from tasks.life.settings import apply_settings as apply_to_current_key
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow


@secret_flow("apply-settings")
async def apply_settings(rotation: str) -> State[None]:
    """Let the current key have the settings that the deployment of its rotation names now.

    Args:
        rotation: The name of the rotation.

    Returns:
        The final state, whose message says in one sentence what was changed.
    """
    async with conclude() as conclusion, open_run(str(rotation), False, conclusion) as run:
        conclusion.succeeded(await apply_deployed_settings(run))
    return conclusion.state


async def apply_deployed_settings(run: Run) -> str:
    """Read the rotation's deployment and apply its settings.

    Args:
        run: The run.

    Returns:
        What was changed, in one sentence.

    Raises:
        KeyRotationError: It could not be applied; a Retry goes on.
    """
    run.step = "read the settings"
    rotation = await run.world.deployed_rotation(run.name)
    await run.load()
    run.step = "change the key"
    return applied(run, await apply_to_current_key(run, rotation))
