"""Apply a rotation's settings to its current key, without rotating it."""

from __future__ import annotations

from typing import Annotated

from prefect import State

from flows.forms import form_field
from flows.runs import conclude, open_run
from flows.show.sentences import applied
from tasks.life.settings import apply_settings as apply_to_current_key
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow


@secret_flow("apply-settings")
async def apply_settings(rotation: Annotated[str, form_field("Rotation")]) -> State[None]:
    """Apply the settings of a rotation's deployment to its current key.

    Args:
        rotation: Name of the rotation.

    Returns:
        The final state; its message lists the changed settings.
    """
    async with conclude() as conclusion, open_run(str(rotation), conclusion) as run:
        conclusion.succeeded(await apply_deployed_settings(run))
    return conclusion.state


async def apply_deployed_settings(run: Run) -> str:
    """Read the rotation's deployment, apply its settings, and return the final message.

    Raises:
        KeyRotationError: A setting could not be applied. Retry continues.
    """
    run.step = "read the settings"
    rotation = await run.world.deployed_rotation(run.name)
    await run.load()
    run.step = "change the key"
    return applied(run, await apply_to_current_key(run, rotation))
