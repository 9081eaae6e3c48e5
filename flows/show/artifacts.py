"""Write artifacts to the dashboard; a failure to write one never fails the run."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.logging import get_run_logger

from tasks.world.gate import DEADLINE_SECONDS


async def show_markdown(key: str, markdown: str, description: str) -> None:
    """Write a Markdown artifact; a failure is logged as a warning."""
    try:
        # Prefect's client would retry for minutes, and might then overwrite the page of a later run.
        async with asyncio.timeout(DEADLINE_SECONDS):
            await acreate_markdown_artifact(key=key, markdown=markdown, description=description)
    except Exception as error:  # noqa: BLE001 - the run has done its work, even if it cannot be shown
        _warn(key, error)


async def show_table(key: str, table: list[dict[str, Any]], description: str) -> None:
    """Write a table artifact; a failure is logged as a warning."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await acreate_table_artifact(key=key, table=table, description=description)
    except Exception as error:  # noqa: BLE001 - the run has done its work, even if it cannot be shown
        _warn(key, error)


def _warn(key: str, error: Exception) -> None:
    # The error's text may quote the whole artifact.
    get_run_logger().warning("The artifact %s was not written (%s).", key, type(error).__name__)
