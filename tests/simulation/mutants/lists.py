"""Wrong versions of the changes to the account's lists of keys."""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import Any

import tasks.key.lists
import tasks.revoke
from tasks.key.lists import carry_over
from tasks.model.ledger import Ledger
from tasks.model.lists import replaced
from tests.simulation.mutants.mutant import ROTATE, SIMPLE, Mutant, nothing

RESTORE = importlib.import_module("flows.restore_key")  # the package exports the flow under the same name
INHERITING = {**SIMPLE, "key": {"inherit": True}}
AMONG = ("rotate", "restrict_to_the_current_key")


async def _carry_over_after_the_publish(run: Any, key: Any, *, inherit: bool) -> None:
    write = run.write

    async def carried_first(ledger: Ledger) -> None:
        run.write = write
        await carry_over(run, key, inherit=inherit)
        await write(ledger)

    # With a check-and-set store, the next write of the ledger comes once the key is published.
    run.write = carried_first


async def _write_once(run: Any, key: Any, which: Any, out: Any, into: Any, _patience: Any = None) -> Any:
    openrouter = await run.world.connection(key.connection)
    await run.guard()
    found = await openrouter.key_list(which.kind, which.id)
    wanted = replaced(found.hashes or (), out, into)
    if wanted and wanted != found.hashes:
        await openrouter.replace_keys(found, wanted)
    return found


MUTANTS = [
    Mutant(
        "a new key is added to lists after it was published",
        ROTATE,
        "carry_over",
        _carry_over_after_the_publish,
        AMONG,
        INHERITING,
    ),
    Mutant(
        "a restored key has no place in the lists of the key that it replaces",
        RESTORE,
        "carry_over",
        nothing,
        (*AMONG, "restore"),
        SIMPLE,
    ),
    Mutant(
        "a dead key stays in lists",
        tasks.revoke,
        "take_out",
        nothing,
        AMONG,
        {**INHERITING, "overlap": timedelta(0)},
    ),
    Mutant(
        "an update of a list that was lost is not made again",
        tasks.key.lists,
        "_change",
        _write_once,
        (*AMONG, "somebody_writes_at_the_same_moment"),
        INHERITING,
    ),
]
