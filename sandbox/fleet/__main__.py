"""Rotate hundreds of keys on a fleet while its parts are killed, and print what happened."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from random import Random

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
from sandbox.demo import interruptible
from sandbox.fleet.consumers import Consumers
from sandbox.fleet.herd import OVERLAP, Herd, read_key
from sandbox.fleet.kills import DOWN_SECONDS, KINDS, kill
from sandbox.fleet.report import Report, examine, show
from sandbox.fleet.stand import Fleet, missing_packages
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.server import running
from sandbox.setup import prepare

CONSUMED = 20
RETIRED_WITHIN_SECONDS = 600.0
"""How long to wait for the last retirement; the try after a failed one waits at least five minutes."""
NOT_INSTALLED = 3
"""The exit code if a program is missing."""


class Receiver:
    """Receives the calls of the automations, and counts them by key and by message."""

    def __init__(self) -> None:
        self.completed: Counter[str] = Counter()
        self.notified: Counter[str] = Counter()
        self.app = Starlette(
            routes=[
                Route("/completed", self._completed, methods=["POST"]),
                Route("/notified", self._notified, methods=["POST"]),
            ]
        )

    async def _completed(self, request: Request) -> Response:
        self.completed[(await request.json())["key_hash"]] += 1
        return Response()

    async def _notified(self, request: Request) -> Response:
        self.notified[(await request.json())["text"]] += 1
        return Response()


async def wire(base_url: str, receiver_url: str) -> None:
    """Create the work pool, the blocks and the automations."""
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), base_url)
    await Webhook(url=SecretStr(f"{receiver_url}/completed")).asave("fleet", overwrite=True)
    block = CustomWebhookNotificationBlock(
        name="fleet", url=f"{receiver_url}/notified", method="POST", json_data={"text": "{{subject}} | {{body}}"}
    )
    await block.asave("fleet", overwrite=True)
    await make_automations({"webhook": "webhook/fleet", "notify": "custom-webhook/fleet"})


async def until_retired(account: OpenRouterSandbox, number: int) -> None:
    """Wait until each rotation has only one live key, or a timeout has passed."""
    deadline = time.monotonic() + OVERLAP.total_seconds() + RETIRED_WITHIN_SECONDS
    while len(account.live_keys()) > number and time.monotonic() < deadline:  # noqa: ASYNC110 - the stand-in is a thread
        await asyncio.sleep(1)


async def trial(
    fleet: Fleet, herd: Herd, base_url: str, account: OpenRouterSandbox, asked: argparse.Namespace, console: Console
) -> Report:
    """Make all rotations due twice: first undisturbed, then with kills and with consumers that use the keys."""
    # This logger ignores `logging.disable`: its thread does not see the setting that it checks instead.
    logging.getLogger("prefect._internal.concurrency").disabled = True
    await herd.prepare()
    console.print(f"{len(herd.rotations)} rotations are due at once; nothing is killed.")
    calm = await herd.start(0)
    await herd.settle(calm)
    console.print(f"  finished: {len(calm.finished)} in {calm.seconds:.0f} s")
    consumers = Consumers(base_url, read_key)
    await consumers.begin(herd.consumed)
    working = asyncio.create_task(consumers.work())
    console.print("They are due again, while consumers use the keys and parts of the fleet are killed:")
    disturbed = await herd.start(asked.over)
    kills = asyncio.create_task(kill(fleet, asked.kills, asked.down, Random(asked.seed), console.print))
    await herd.settle(disturbed)
    await kills
    console.print(f"  finished: {len(disturbed.finished)} in {disturbed.seconds:.0f} s")
    console.print("The overlaps end:")
    await until_retired(account, len(herd.rotations))
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return await examine(herd, calm, disturbed, consumers, account)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.fleet", description=__doc__)
    parser.add_argument("--rotations", type=int, default=200, help="how many rotations (default: 200)")
    parser.add_argument("--over", type=float, default=0, help="over how many seconds they are due (default: at once)")
    parser.add_argument("--kills", default=",".join(KINDS), help="what is killed, in this order (default: %(default)s)")
    parser.add_argument("--down", type=float, default=DOWN_SECONDS, help="seconds until it is started again")
    parser.add_argument("--seed", type=int, help="kill in another order, chosen by this number")
    asked = parser.parse_args()
    asked.kills = [kind for kind in asked.kills.split(",") if kind]
    if unknown := set(asked.kills) - KINDS.keys():
        parser.error(f"--kills: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    if asked.seed is not None:
        Random(asked.seed).shuffle(asked.kills)
    return asked


def main() -> int:
    """Run the trial.

    Returns:
        The exit code: 0 if nothing was lost, 1 if something was, 3 if a program is not installed.
    """
    asked, console, begun = arguments(), Console(), time.monotonic()
    if missing := missing_packages():
        console.print(f"A fleet requires PostgreSQL and Redis: apt-get install {' '.join(missing)}")
        return NOT_INSTALLED
    if importlib.util.find_spec("prefect_redis") is None:
        console.print("A fleet requires prefect-redis: pip install 'key-rotation[fleet]'", markup=False)
        return NOT_INSTALLED
    # Clients in this process fail while a part is down; the report counts that, so their logs are silenced.
    logging.disable(logging.CRITICAL)
    account, receiver = OpenRouterSandbox(), Receiver()
    console.print("Starting PostgreSQL, Redis, two Prefect servers, their services and three workers …")
    with interruptible(), ExitStack() as open_:
        base_url = open_.enter_context(running(openrouter.create_app(account))) + "/api/v1"
        vault_url = open_.enter_context(running(vault.create_app()))
        receiver_url = open_.enter_context(running(receiver.app))
        fleet = open_.enter_context(Fleet())
        open_.enter_context(fleet.as_client())
        asyncio.run(wire(base_url, receiver_url))
        fleet.cli("deploy", "--all", "--no-prompt")
        fleet.start_workers()
        herd = Herd(asked.rotations, min(CONSUMED, asked.rotations), vault_url)
        report = asyncio.run(trial(fleet, herd, base_url, account, asked, console))
        report.fired = receiver.completed
        report.notified = receiver.notified
        report.started_again = fleet.started_again
    return 0 if show(report, time.monotonic() - begun, console) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
