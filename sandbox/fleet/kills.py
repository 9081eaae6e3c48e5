"""Kill the parts of a fleet, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random

from sandbox.fleet.stand import SERVERS, WORKERS, Fleet

KINDS = {
    "server": [f"server-{number}" for number in range(1, SERVERS + 1)],
    "worker": [f"worker-{number}" for number in range(1, WORKERS + 1)],
    "redis": ["redis"],
    "services": ["services"],
    "postgres": ["postgres"],
}
"""What can be killed: for each kind the parts of which one is chosen."""
DOWN_SECONDS = 10.0
"""How long a part stays down, unless the command says otherwise."""
PAUSE_SECONDS = 10.0
"""How long the fleet is left alone after a part is up again, and before the first kill."""
UP_WITHIN_SECONDS = 120.0


async def kill(fleet: Fleet, kinds: Sequence[str], down: float, random: Random, say: Callable[[str], None]) -> None:
    """Kill one part of each kind, in this order; each is started again after some seconds.

    Args:
        fleet: The fleet.
        kinds: The kinds.
        down: After how many seconds it is started again.
        random: Chooses among the parts of a kind.
        say: Prints a line.

    Raises:
        RuntimeError: A part did not come up again.
    """
    begun = time.monotonic()
    for kind in kinds:
        await asyncio.sleep(PAUSE_SECONDS)
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
