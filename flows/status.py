"""The overview of all rotations in the terminal: `python -m flows.status`."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_API_URL
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
    url = PREFECT_API_URL.value()
    if not url:
        # Without an address Prefect would start a server of its own, which knows no rotation.
        return _unknown("Set PREFECT_API_URL to the Prefect server whose rotations you want to see.")
    try:
        rows = asyncio.run(read())
    except KeyRotationError as error:
        return _unknown(str(error))
    except RuntimeError:
        # What Prefect's client makes of a server that it cannot reach.
        return _unknown(f"The Prefect server at {url} cannot be reached.")
    table = Table(*HEADER, title=summary(rows))
    for row in sorted(rows, key=lambda each: (-each.health, each.name)):
        table.add_row(*row.cells(), style=COLOURS[row.health])
    Console().print(table)
    return int(any(row.health is not Health.HEALTHY for row in rows))


def _unknown(sentence: str) -> int:
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
