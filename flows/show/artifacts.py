"""Show in the dashboard what a run has done; where that fails, the run itself has not."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.logging import get_run_logger

from tasks.world.gate import DEADLINE_SECONDS


async def show_markdown(key: str, markdown: str, description: str) -> None:
    """Show a page as an artifact; where that fails, the log says so, and the run goes on.

    Args:
        key: The artifact's key.
        markdown: The page, without any secret.
        description: What it is, in a few words.
    """
    try:
        # Prefect's client would go on for minutes, and then put this page over that of a later run.
        async with asyncio.timeout(DEADLINE_SECONDS):
            await acreate_markdown_artifact(key=key, markdown=markdown, description=description)
    except Exception as error:  # noqa: BLE001 - what was done is done, whether it can be shown or not
        _warn(key, error)


async def show_table(key: str, table: list[dict[str, Any]], description: str) -> None:
    """Show a table as an artifact; where that fails, the log says so, and the run goes on.

    Args:
        key: The artifact's key.
        table: The rows, without any secret.
        description: What it is, in a few words.
    """
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await acreate_table_artifact(key=key, table=table, description=description)
    except Exception as error:  # noqa: BLE001 - what was done is done, whether it can be shown or not
        _warn(key, error)


def _warn(key: str, error: Exception) -> None:
    # Its text may quote the artifact, which is long.
    get_run_logger().warning("The artifact %s was not written (%s).", key, type(error).__name__)
