"""Kill the parts of a fleet, one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random

from sandbox.fleet.processes import SERVERS, WORKERS, Fleet

KINDS = {
    "server": [f"server-{number}" for number in range(1, SERVERS + 1)],
    "worker": [f"worker-{number}" for number in range(1, WORKERS + 1)],
    "redis": ["redis"],
    "services": ["services"],
    "postgres": ["postgres"],
}
"""The parts of each kind, one of which is killed."""
DOWN_SECONDS = 10.0
"""How long a part stays down by default, in seconds."""
PAUSE_SECONDS = 10.0
"""How long the fleet is undisturbed before each kill by default, in seconds."""
UP_WITHIN_SECONDS = 120.0


async def kill(
    fleet: Fleet,
    kinds: Sequence[str],
    down: float,
    random: Random,
    say: Callable[[str], None],
    pause: float = PAUSE_SECONDS,
) -> None:
    """Kill one part of each kind, in this order, and restart it after a delay.

    Args:
        fleet: The fleet.
        kinds: The kinds.
        down: The delay, in seconds.
        random: Chooses among the parts of a kind.
        say: Prints a line.
        pause: How long the fleet is undisturbed before each kill, in seconds.

    Raises:
        RuntimeError: A part did not restart.
    """
    begun = time.monotonic()
    for kind in kinds:
        await asyncio.sleep(pause)
        name = random.choice(KINDS[kind])
        part = fleet.parts[name]
        part.kill()
        say(f"  {time.monotonic() - begun:.0f} s: {name} is killed, and started again after {down:.0f} s")
        await asyncio.sleep(down)
        part.is_wanted = True
        deadline = time.monotonic() + UP_WITHIN_SECONDS
        while not part.process.is_alive:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not come up again.")
            await asyncio.sleep(0.2)
