"""How long to wait for OpenRouter to know a key: a new one may take some seconds to be known everywhere."""

from __future__ import annotations

from datetime import timedelta
from random import uniform

from tasks.world.ports import World

ACCEPTED_WITHIN = timedelta(seconds=60)
"""How long a new key may take to be accepted everywhere at OpenRouter."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 5.0


class Patience:
    """Growing waits for a key, which end after `ACCEPTED_WITHIN` altogether.

    Args:
        world: The clock.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._ends = world.now() + ACCEPTED_WITHIN
        self._longest = FIRST_WAIT_SECONDS

    async def wait(self) -> bool:
        """Wait before the next attempt.

        Returns:
            Whether to try again; `False` at once if the time is over.
        """
        if self._world.now() >= self._ends:
            return False
        # Randomised, so that runs that started together do not retry in step.
        await self._world.sleep(uniform(0.5, 1.0) * self._longest)  # noqa: S311 - no secret
        self._longest = min(self._longest * 2, LONGEST_WAIT_SECONDS)
        return True
