"""Show all rotations in the terminal: `python -m flows.status`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from prefect.context import AsyncClientContext
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from blocks.errors import KeyRotationError
from flows.server import ask_prefect
from flows.show.overview import HEADER, Health, Row, read_rows, summary, worst_first

COLOURS = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.FAILED: "red"}


async def read() -> list[Row]:
    """Read all rotations over one connection."""
    async with AsyncClientContext.get_or_create():
        return await read_rows(datetime.now(UTC))


def main() -> int:
    """Print the table.

    Returns:
        The exit code: 0 if every rotation is healthy, 1 if not, 2 if Prefect cannot be reached.
    """
    try:
        rows = ask_prefect(read)
    except KeyRotationError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        return 2
    show(rows, Console())
    return int(any(row.health is not Health.HEALTHY for row in rows))


def show(rows: list[Row], console: Console) -> None:
    """Print the rotations, and below them the required actions."""
    table = Table(title=summary(rows), box=box.SIMPLE, pad_edge=False)
    for name in HEADER:
        # A wrapped name cannot be copied.
        table.add_column(name, overflow="fold", no_wrap=name in {"Rotation", "Health", "Current key"})
    for row in worst_first(rows):
        table.add_row(*map(escape, row.cells()), style=COLOURS[row.health])
    console.print(table)
    for row in worst_first(rows):
        if row.needs:
            console.print(Text(f"{row.name}: {row.needs}", style=COLOURS[row.health]))


if __name__ == "__main__":
    sys.exit(main())
