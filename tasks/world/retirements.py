"""Schedule the runs that retire the keys of a rotation when they are due."""

from __future__ import annotations

from datetime import datetime

from tasks.world.run import Run


async def schedule_retirements(run: Run, looked_at: datetime) -> None:
    """Schedule a retirement for each time at which a key needs attention, unless one exists already.

    Args:
        run: The run.
        looked_at: The time, UTC, up to which this run has seen to what was due. What has become due since is scheduled,
            too: its retirement starts at once.
    """
    ledger = run.ledger
    moments = [moment for moment in ledger.due_times() if moment > looked_at]
    # All but the one of a key that this run has superseded are usually scheduled, which one request shows.
    usually_there = len(moments) - (0 if run.is_idle else 1)
    there = await run.world.retirements_to_come(run.name) if usually_there > 0 else set()
    for at in [moment for moment in moments if moment not in there]:
        # After a removal, no later run would revoke the key of a cancelled retirement, so another one is scheduled.
        if not await run.world.schedule_retirement(run.name, at, even_if_cancelled=ledger.removed):
            run.note("There is no deployment retire/retire; the next rotation revokes what is overdue.")
