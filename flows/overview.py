"""Refresh the overview of all rotations, and delete outdated terms of their ledgers."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import State

from flows.runs import conclude
from flows.show.overview import read_rows, show, summary
from tasks.world.ledgers import prune_ledgers
from tasks.world.secrecy import secret_flow


@secret_flow("overview")
async def overview() -> State[None]:
    """Refresh the overview of all rotations, the artifact `key-rotations`, and delete old versions of their ledgers.

    An automation of its deployment starts it a minute after a rotation's run has ended, and at most once a minute.

    Returns:
        The final state; its message counts the rotations by their health.
    """
    async with conclude() as conclusion:
        now = datetime.now(UTC)
        rows = await read_rows(now)
        await show(rows, now)
        await prune_ledgers()
        conclusion.succeeded(summary(rows))
    return conclusion.state
