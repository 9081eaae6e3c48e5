"""A dashboard with everything wired, kept running until Ctrl-C.

With `OPENROUTER_MANAGEMENT_KEY` in the environment it rotates at the real OpenRouter, otherwise at the stand-in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack

from pydantic import SecretStr
from rich.console import Console

from flows.automations import make_automations
from sandbox.demo import interruptible
from sandbox.openrouter import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, create_app
from sandbox.server import running
from sandbox.setup import CONNECTION, SECRET, prepare
from sandbox.stack import Stack, free_port

DASHBOARD_PORT = 4200
MANAGEMENT_KEY = "OPENROUTER_MANAGEMENT_KEY"


async def wire(management_key: SecretStr, base_url: str | None) -> None:
    """Make pool, blocks and automations."""
    await prepare(management_key, base_url)
    await make_automations({})


def main() -> None:
    """Start everything, print where the dashboard is, and wait."""
    console = Console()
    # Taken out of the environment, so that no process started here inherits it.
    real = os.environ.pop(MANAGEMENT_KEY, None)
    with interruptible(), ExitStack() as open_:
        base_url = None if real else open_.enter_context(running(create_app(OpenRouterSandbox()))) + "/api/v1"
        stack = open_.enter_context(Stack(port=free_port(DASHBOARD_PORT)))
        with stack.as_client():
            asyncio.run(wire(SecretStr(real or DEFAULT_MANAGEMENT_KEY), base_url))
        stack.cli("deploy", "--all", "--no-prompt")
        stack.start_worker()
        console.print(f"Dashboard: [bold]{stack.url}[/]   (Ctrl-C stops everything)")
        console.print(f"Connection [bold]{CONNECTION}[/]: {'the real OpenRouter' if real else 'a local stand-in'}")
        console.print(f"For another terminal: export PREFECT_API_URL={stack.url}/api", soft_wrap=True)
        console.print(f"Add a rotation: press Run at {stack.url}/deployments, deployment add-rotation.")
        console.print(f"Or run the example there, rotate/example; the key is in secret/{SECRET}.")
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
