"""The overview of all rotations in the terminal: `python -m flows.status`."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from prefect.context import AsyncClientContext
from rich.console import Console
from rich.table import Table

from blocks.errors import KeyRotationError
from flows.overview import HEADER, Health, Row, read_rows, summary

COLOURS = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.FAILED: "red"}


async def read() -> list[Row]:
    """Read all rotations over one connection.

    Returns:
        The rotations.
    """
    async with AsyncClientContext.get_or_create():
        return await read_rows(datetime.now(UTC))


def main() -> int:
    """Print the table.

    Returns:
        0 where every rotation is healthy, 1 where one is not, 2 where Prefect cannot be asked.
    """
    try:
        rows = asyncio.run(read())
    except KeyRotationError as error:
        Console(stderr=True).print(str(error), markup=False)
        return 2
    table = Table(*HEADER, title=summary(rows))
    for row in sorted(rows, key=lambda each: (-each.health, each.name)):
        table.add_row(*row.cells(), style=COLOURS[row.health])
    Console().print(table)
    return int(any(row.health is not Health.HEALTHY for row in rows))


if __name__ == "__main__":
    sys.exit(main())
