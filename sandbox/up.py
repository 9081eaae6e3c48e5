"""Run a complete setup with a dashboard until Ctrl-C.

With `OPENROUTER_MANAGEMENT_KEY` in the environment it uses the real OpenRouter, otherwise the stand-in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime

from prefect import get_client
from pydantic import SecretStr
from rich.console import Console

from flows.automations import make_automations
from flows.show.overview import OVERVIEW, read_rows, show
from sandbox.openrouter import create_app
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.server import running
from sandbox.setup import CONNECTION, SECRET, prepare
from sandbox.stack import Stack, free_port, interruptible

DASHBOARD_PORT = 4200
MANAGEMENT_KEY = "OPENROUTER_MANAGEMENT_KEY"


async def wire(management_key: SecretStr, base_url: str | None) -> None:
    """Create the work pool, the blocks and the automations."""
    await prepare(management_key, base_url)
    await make_automations({})


async def first_pages(ui_url: str) -> dict[str, str]:
    """Write the overview, and return the URLs of pages that the dashboard's menu lacks, by their purpose."""
    now = datetime.now(UTC)
    await show(await read_rows(now), now)
    async with get_client() as client:
        form = await client.read_deployment_by_name("add-rotation/add-rotation")
    return {
        "Add a rotation": f"{ui_url}/deployments/deployment/{form.id}/run",
        "See all rotations": f"{ui_url}/artifacts/key/{OVERVIEW}",
        "See all artifacts": f"{ui_url}/artifacts",
    }


def main() -> None:
    """Start everything, print the dashboard's URL, and wait."""
    console = Console()
    # Removed from the environment, so that no child process inherits it.
    real = os.environ.pop(MANAGEMENT_KEY, None)
    console.print("Starting a Prefect server and a worker; this takes a minute or two …")
    with interruptible(), ExitStack() as open_:
        base_url = None if real else open_.enter_context(running(create_app(OpenRouterSandbox()))) + "/api/v1"
        stack = open_.enter_context(Stack(port=free_port(DASHBOARD_PORT)))
        with stack.as_client():
            asyncio.run(wire(SecretStr(real or DEFAULT_MANAGEMENT_KEY), base_url))
        stack.cli("deploy", "--all", "--no-prompt")
        stack.start_worker()
        with stack.as_client():
            pages = asyncio.run(first_pages(stack.ui_url))
        console.print(f"Dashboard: [bold]{stack.ui_url}[/]   (Ctrl-C stops everything)")
        console.print(f"Connection [bold]{CONNECTION}[/]: {'the real OpenRouter' if real else 'a local stand-in'}")
        console.print(
            f"For another terminal: export PREFECT_API_URL={stack.url}/api PREFECT_UI_URL={stack.ui_url}",
            soft_wrap=True,
        )
        for what, address in pages.items():
            console.print(f"{what}: {address}", soft_wrap=True)
        console.print(f"Or run the example, rotate/example; the key is in secret/{SECRET}.", soft_wrap=True)
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
