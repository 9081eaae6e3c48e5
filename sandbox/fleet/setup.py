"""A whole fleet with the stand-ins of OpenRouter and Vault, and what receives the calls of its automations."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.webhook import Webhook
from pydantic import SecretStr
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.automations import make_automations
from sandbox import openrouter, vault
from sandbox.fleet.processes import Fleet, missing_packages
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.server import running
from sandbox.setup import prepare
from sandbox.stack import interruptible

NOT_INSTALLED = 3
"""The exit code if a program is missing."""


class Receiver:
    """Receives the calls of the automations, and counts those for completed rotations by key."""

    def __init__(self) -> None:
        self.completed: Counter[str] = Counter()
        self.app = Starlette(
            routes=[
                Route("/completed", self._completed, methods=["POST"]),
                Route("/notified", self._notified, methods=["POST"]),
            ]
        )

    async def _completed(self, request: Request) -> Response:
        self.completed[(await request.json())["key_hash"]] += 1
        return Response()

    async def _notified(self, _: Request) -> Response:
        return Response()


@dataclass
class Site:
    """A fleet that is running, and everything that its rotations talk to."""

    fleet: Fleet
    account: OpenRouterSandbox
    receiver: Receiver
    openrouter_app: Starlette
    vault_app: Starlette
    base_url: str
    vault_url: str


def can_run(console: Console) -> bool:
    """Return whether all programs of a fleet are installed; print which one is not."""
    if missing := missing_packages():
        console.print(f"A fleet requires PostgreSQL and Redis: apt-get install {' '.join(missing)}")
    elif importlib.util.find_spec("prefect_redis") is None:
        console.print("A fleet requires prefect-redis: pip install 'key-rotation[fleet]'", markup=False)
    else:
        return True
    return False


@contextmanager
def started(console: Console) -> Iterator[Site]:
    """Start a fleet with its stand-ins, work pool, blocks and automations, and stop everything at the end.

    Raises:
        RuntimeError: A part did not start.
    """
    # Clients in this process fail while a part is down; the results count that, so their logs are silenced.
    logging.disable(logging.CRITICAL)
    # This logger ignores `logging.disable`: its thread does not see the setting that it checks instead.
    logging.getLogger("prefect._internal.concurrency").disabled = True
    account, receiver = OpenRouterSandbox(), Receiver()
    apps = openrouter.create_app(account), vault.create_app()
    console.print("Starting PostgreSQL, Redis, two Prefect servers, their services and three workers …")
    with interruptible(), ExitStack() as open_:
        openrouter_url, vault_url, receiver_url = (open_.enter_context(running(app)) for app in (*apps, receiver.app))
        fleet = open_.enter_context(Fleet())
        open_.enter_context(fleet.as_client())
        base_url = f"{openrouter_url}/api/v1"
        asyncio.run(_wire(base_url, receiver_url))
        fleet.cli("deploy", "--all", "--no-prompt")
        fleet.start_workers()
        yield Site(fleet, account, receiver, *apps, base_url, vault_url)


async def _wire(base_url: str, receiver_url: str) -> None:
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), base_url)
    await Webhook(url=SecretStr(f"{receiver_url}/completed")).asave("fleet", overwrite=True)
    block = CustomWebhookNotificationBlock(
        name="fleet", url=f"{receiver_url}/notified", method="POST", json_data={"text": "{{subject}} | {{body}}"}
    )
    await block.asave("fleet", overwrite=True)
    await make_automations({"webhook": "webhook/fleet", "notify": "custom-webhook/fleet"})
