"""Name the users of a key, for the person who moves its consumers. No decision depends on it."""

from __future__ import annotations

from datetime import timedelta

from blocks.errors import ServiceError
from tasks.model.records import Superseded
from tasks.model.times import show_time
from tasks.world.optional import read_uses
from tasks.world.ports import KeyReader
from tasks.world.run import Run

LOOKS_BACK = timedelta(days=7)
"""How far back to ask if it is unknown when a key was superseded."""
SHOWN = 3
"""How many uses are named."""


async def who_uses(run: Run, openrouter: KeyReader, key: Superseded) -> str:
    """Return by which application and model a superseded key was used, and when last.

    Args:
        run: The run.
        openrouter: The key's connection.
        key: The key.

    Returns:
        One sentence with a leading space; empty if the account cannot tell.
    """
    now = run.world.now()
    try:
        uses = await read_uses(openrouter, key.hash, key.since or now - LOOKS_BACK, now)
    except ServiceError as error:
        # Whether the key is in use is known without this.
        return f" Which application uses it could not be determined: {error}"
    if not uses:
        return ""
    said = [f"{use.by}{f', last at {show_time(use.last)}' if use.last else ''}" for use in uses[:SHOWN]]
    more = f"; and {len(uses) - SHOWN} others" if len(uses) > SHOWN else ""
    return f" It was used by {'; '.join(said)}{more}."
