"""Show all rotations in the terminal: `python -m flows.status`.

Exit codes: 0, every rotation is healthy; 1, one is degraded; 2, a person is needed, because a rotation has failed or
Prefect cannot be reached.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from blocks.errors import KeyRotationError
from flows.server import ask_prefect
from flows.show.overview import HEADER, Health, Row, read_rows, summary, worst_first
from tasks.model.ledger import Ledger
from tasks.world.inventory import SeenRun

CANNOT_ASK = int(Health.FAILED)
"""The exit code if Prefect cannot be reached."""
WIDTHS = dict(zip(HEADER, (20, 8, 20, 12, 12), strict=False))
"""The maximum width of each column; with the spaces between them, they fill 80 columns."""
COLOURS = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.FAILED: "red"}


async def read() -> list[Row]:
    """Read all rotations."""
    return await read_rows(datetime.now(UTC))


def main(arguments: Sequence[str] = ()) -> int:
    """Print all rotations, as a table or as JSON.

    Args:
        arguments: The command's arguments; `--json` for JSON.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(prog="python -m flows.status", description="Show all rotations.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    wanted = parser.parse_args(arguments)
    try:
        rows = ask_prefect(read)
    except KeyRotationError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        return CANNOT_ASK
    if wanted.json:
        sys.stdout.write(json.dumps([as_json(row) for row in worst_first(rows)], indent=2) + "\n")
    else:
        show(rows, Console())
    return int(max((row.health for row in rows), default=Health.HEALTHY))


def as_json(row: Row) -> dict[str, Any]:
    """Return a rotation for programs; times are in ISO 8601, UTC."""
    facts, ledger = row.facts, row.facts.ledger or Ledger()
    return {
        "rotation": row.name,
        "health": row.health.name.lower(),
        "needs": row.needs,
        "current": {"label": ledger.current.label, "since": ledger.current.since.isoformat()}
        if ledger.current
        else None,
        "superseded": [
            {"label": key.label, "revoke_at": key.revoke_at.isoformat(), "disabled": key.disabled}
            for key in ledger.superseded
        ],
        "next_run": _run(facts.next_run, row.urls.next_run),
        "last_run": _run(facts.last_run, row.urls.last_run),
        "deployment_url": row.urls.deployment,
        "page_url": row.urls.page,
    }


def _run(run: SeenRun | None, url: str) -> dict[str, str] | None:
    if run is None:
        return None
    return {"id": run.id, "state": run.state, "at": run.at.isoformat(), "message": run.message, "url": url}


def show(rows: list[Row], console: Console) -> None:
    """Print the rotations within 80 columns, and below them their superseded keys and the required actions."""
    table = Table(title=summary(rows), box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in HEADER[:-1]:
        # Only a long name is broken within a word; the other cells contain spaces.
        table.add_column(name, overflow="fold", max_width=WIDTHS[name])
    for row in worst_first(rows):
        table.add_row(*map(escape, row.cells()[:-1]), style=COLOURS[row.health])
    console.print(table)
    for row in worst_first(rows):
        if row.facts.ledger and row.facts.ledger.superseded:
            console.print(Text(f"{row.name}: superseded: {row.superseded}", style=COLOURS[row.health]))
        if row.needs:
            console.print(Text(f"{row.name}: {row.needs}", style=COLOURS[row.health]))
        if row.needs and row.urls.last_run:
            # A wrapped address cannot be clicked.
            console.print(Text(row.urls.last_run, style=COLOURS[row.health]), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
