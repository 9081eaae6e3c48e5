"""Rotate a key three times while a consumer uses it, and print the result.

Everything runs on loopback: a Prefect server with its embedded database, a worker, and the OpenRouter stand-in. The
consumer's requests are paid with a provider key of the account (BYOK) that serves only the keys in its list.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from sandbox.consumers import Consumer, read_secret
from sandbox.openrouter import create_app
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, StoredKey
from sandbox.server import running
from sandbox.setup import CONNECTION, SECRET, prepare
from sandbox.stack import Stack, interruptible

ROTATION = "example"
ROTATIONS = 3
OVERLAP_SECONDS = 6
MEANING = (
    "superseded: every destination holds a newer key; this one stays valid for consumers that cached it.",
    f"overlap: how long a superseded key stays valid; {OVERLAP_SECONDS} seconds here, one day by default.",
    "Next: run `make up`, and follow docs/tutorial/first-rotation.md.",
)
"""What the runs' messages mean, and what to do next."""
REQUESTS_PER_SECOND = 20
RUN_TIMEOUT_SECONDS = 180.0


async def run_rotation(console: Console) -> None:
    """Start a run of the example rotation and wait until the worker has completed it.

    Raises:
        RuntimeError: The run did not complete; the text includes its message.
    """
    from prefect import get_client

    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"rotate/{ROTATION}")
        example = deployment.parameters["rotation"]
        key = {**example["key"], "inherit": True}
        rotation = {**example, "key": key, "overlap": f"PT{OVERLAP_SECONDS}S"}
        run = await client.create_flow_run_from_deployment(deployment.id, parameters={"rotation": rotation})
        await wait_for(client, run.id)
        done = await client.read_flow_run(run.id)
    if done.state is None or not done.state.is_completed():
        raise RuntimeError(f"The run {run.name} did not complete: {done.state.message if done.state else 'no state'}")
    console.print(f"  {done.state.message}")


async def wait_for(client: Any, run_id: Any) -> None:
    """Wait until a run has ended.

    Raises:
        RuntimeError: The run did not end in time.
    """
    deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        run = await client.read_flow_run(run_id)
        if run.state is not None and run.state.is_final():
            return
        await asyncio.sleep(0.2)
    raise RuntimeError("A run did not end in time.")


async def wait_until_retired(openrouter: OpenRouterSandbox) -> None:
    """Wait until the last superseded key is revoked.

    Raises:
        RuntimeError: It is still valid long after the overlap.
    """
    deadline = time.monotonic() + OVERLAP_SECONDS + RUN_TIMEOUT_SECONDS
    while len(openrouter.live_keys()) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError("A superseded key was not revoked in time.")
        await asyncio.sleep(0.2)


def keep_provider_key_for(openrouter: OpenRouterSandbox, keys: list[StoredKey]) -> str:
    """Add a BYOK credential that only some keys may use, and return its id."""
    named = [key.hash for key in keys]
    credential = openrouter.add_credential(
        openrouter.accounts[0], None, name="provider key", allowed_api_key_hashes=named
    )
    return str(credential["id"])


def dead_keys_named(openrouter: OpenRouterSandbox) -> int:
    """Return how many dead keys the account's BYOK credentials name."""
    live = {key.hash for key in openrouter.live_keys()}
    return sum(len(set(one["allowed_api_key_hashes"] or ()) - live) for one in openrouter.credentials.values())


async def story(console: Console, openrouter: OpenRouterSandbox, base_url: str) -> Consumer:
    """Rotate once, then twice more while a consumer keeps calling, and return the consumer."""
    console.print("A first rotation, by the worker:")
    await run_rotation(console)
    credential = keep_provider_key_for(openrouter, openrouter.live_keys())
    consumer = Consumer(base_url, partial(read_secret, SECRET), REQUESTS_PER_SECOND, credential=credential)
    console.print(
        "The consumer also needs a provider key of the account (BYOK), which serves only the keys named in its list."
    )
    working = asyncio.create_task(consumer.work())
    for number in range(2, ROTATIONS + 1):
        console.print(f"Rotation {number}, while a consumer keeps calling with the key:")
        await run_rotation(console)
    console.print(
        "The superseded keys end, each when its overlap is over and no late write could bring it back (a minute):"
    )
    await wait_until_retired(openrouter)
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return consumer


def show(console: Console, openrouter: OpenRouterSandbox, consumer: Consumer, seconds: float) -> bool:
    """Print the result, and return whether no request failed and exactly one key is left."""
    live, revoked, dead = len(openrouter.live_keys()), len(openrouter.deleted), dead_keys_named(openrouter)
    good = consumer.failed == dead == 0 and live == 1 and revoked == ROTATIONS - 1 and consumer.answers.total() > 0
    table = Table("what", "number", title="Three rotations of one key", min_width=50)
    table.add_row("keys made", str(len(openrouter.created)))
    table.add_row("keys revoked", str(revoked))
    table.add_row("keys alive", str(live))
    table.add_row("dead keys that the provider key still names", str(dead))
    table.add_row("requests sent by the consumer", str(consumer.answers.total()))
    table.add_row("requests failed", str(consumer.failed), style="green" if consumer.failed == 0 else "red")
    table.add_row("seconds", f"{seconds:.0f}")
    console.print(table)
    console.print("[green]No request was lost.[/]" if good else "[red]Something went wrong; see above.[/]")
    for line in MEANING:
        console.print(line)
    return good


def main() -> int:
    """Run the demo.

    Returns:
        The exit code: 0 if no request failed and exactly one key is left, 1 otherwise.
    """
    console, begun = Console(), time.monotonic()
    openrouter = OpenRouterSandbox()
    console.print("Starting the OpenRouter stand-in, a Prefect server and a worker; this takes a minute or two …")
    with interruptible(), running(create_app(openrouter)) as base_url, Stack() as stack, stack.as_client():
        console.print(f"The Prefect server is up after {time.monotonic() - begun:.0f} seconds.")
        asyncio.run(prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), f"{base_url}/api/v1"))
        stack.start_worker()
        console.print("Deploying the flows, as `prefect deploy --all` does …")
        stack.cli("deploy", "--all", "--no-prompt")
        console.print(f"Dashboard: {stack.ui_url} · connection {CONNECTION} · destination secret/{SECRET}")
        consumer = asyncio.run(story(console, openrouter, f"{base_url}/api/v1"))
    return 0 if show(console, openrouter, consumer, time.monotonic() - begun) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        sys.exit(f"The demo failed: {error}")
