"""Rotate for a long time with injected faults and a consumer per rotation: `make soak`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import httpx
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette

from bench.measuring import rotation
from sandbox import infisical, openrouter, vault
from sandbox.consumers import Consumer, read_key
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.server import Fault, running
from sandbox.setup import prepare
from sandbox.stack import Stack
from sandbox.usage import growth, lasting_growth, memory_mb, open_sockets
from sandbox.vault_tokens import ROOT_TOKEN

OVERLAP = timedelta(seconds=12)
CACHE_SECONDS = 3.0
"""How long a consumer caches a key; far below the overlap."""
REQUESTS_PER_SECOND = 2
FAULTS = 0.05
CALLS = r"/keys|/key$|/v1/secret|/raw/|/login"
"""The requests into which faults are injected: those of rotations, not those of consumers."""
PREFECT_CALLS = re.compile(r"/api/.*(variables|block_documents|create_flow_run)")
"""The requests to Prefect's API into which faults are injected: ledger, blocks, retirements; not the engine's own."""
KINDS = ("secret", "vault-secret", "infisical-secret")
POINTS = 20
"""The number of measurements of memory and sockets."""
MEMORY_TOLERANCE = 0.10
"""The allowed growth of memory from the first to the last quarter of the measurements, by their medians."""
SOCKETS_TOLERANCE = 10
"""The allowed growth of open sockets, whose number varies with the consumers' reads."""

is_consumer: ContextVar[bool] = ContextVar("is_consumer", default=False)


@dataclass
class Soak:
    """The setup of a soak test, and its results."""

    sandbox: OpenRouterSandbox
    apps: list[Starlette]
    urls: list[str]
    names: int
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    prefect_fails: bool = False
    rows: list[tuple[int, float, int]] = field(default_factory=list)


def switch_faults_on(soak: Soak) -> None:
    """Make one request in twenty fail: half of them before they take effect, half after."""
    soak.prefect_fails = True
    for app in soak.apps:
        app.state.faults.add(Fault("before", path=CALLS, status=503, body="{}", probability=FAULTS / 2))
        app.state.faults.add(Fault("after", path=CALLS, probability=FAULTS / 2))


@contextmanager
def prefect_between(soak: Soak) -> Iterator[None]:
    """Make one request in twenty to Prefect's API fail while `soak.prefect_fails` is set.

    They fail with 500, which Prefect's client does not retry: half of them before they take effect, half after.
    """
    random = Random(0)  # noqa: S311 - reproducible
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        chance = random.random()
        spared = is_consumer.get() or not soak.prefect_fails or not PREFECT_CALLS.search(request.url.path)
        if spared or chance >= FAULTS:
            return await send(transport, request)
        soak.struck[PREFECT_CALLS.search(request.url.path)[1]] += 1  # type: ignore[index] # it has matched above
        if chance < FAULTS / 2:
            answer = await send(transport, request)
            await answer.aread()
            await answer.aclose()
        return httpx.Response(500, json={}, request=request)

    with mock.patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle):
        yield


async def make_destinations(soak: Soak) -> dict[str, Any]:
    """Create a destination for each rotation, alternating their types, and return the rotations by name."""
    from prefect.blocks.system import Secret

    import blocks
    from blocks.vault.auth import TokenAuth
    from tasks.model.keys import NOT_YET_ROTATED

    rotations = {}
    for number in range(soak.names):
        name, kind = f"soak-{number}", KINDS[number % 3]
        if kind == "secret":
            await Secret(value=NOT_YET_ROTATED).asave(name, overwrite=True)
        elif kind == "vault-secret":
            login = blocks.VaultCredentials(url=soak.urls[1], auth=TokenAuth(token=ROOT_TOKEN))
            await blocks.VaultSecret(credentials=login, path=name).asave(name, overwrite=True)
        else:
            identity = blocks.InfisicalCredentials(
                host=soak.urls[2], client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET
            )
            place = {"project_id": infisical.PROJECT_ID, "environment": "prod", "name": name.upper()}
            await blocks.InfisicalSecret(credentials=identity, **place).asave(name, overwrite=True)
        rotations[name] = rotation(name, f"{kind}/{name}", overlap=OVERLAP)
    return rotations


async def consume(soak: Soak, subject: Any) -> None:
    """Call the API continuously with the rotation's key, and read it without injected faults."""
    is_consumer.set(True)
    base_url, read = f"{soak.urls[0]}/api/v1", partial(read_key, subject.destinations[0])
    await Consumer(base_url, read, REQUESTS_PER_SECOND, CACHE_SECONDS, answers=soak.answers).work()


async def soak_through(soak: Soak, runs: int, console: Console) -> dict[str, Any]:
    """Rotate the names in turn, `runs` times, and return the rotations by name."""
    from prefect import get_client

    from flows import retire, rotate

    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), f"{soak.urls[0]}/api/v1")
    async with get_client() as client:
        # Retirements are scheduled but never run; the next rotation revokes the superseded keys instead.
        await client.create_deployment(await client.create_flow(retire), "retire")
    rotations = await make_destinations(soak)
    for subject in rotations.values():
        assert (await rotate(subject, return_state=True)).is_completed()
    switch_faults_on(soak)
    consumers = [asyncio.create_task(consume(soak, subject)) for subject in rotations.values()]
    for number in range(1, runs + 1):
        state = await rotate(rotations[f"soak-{number % soak.names}"], return_state=True)
        soak.outcomes[str(state.name)] += 1
        if number % max(1, runs // POINTS) == 0:
            observe(soak, number)
            console.print(f"{number} runs: {dict(soak.outcomes)}; {soak.rows[-1]}")
    for consumer in consumers:
        consumer.cancel()
    ends = await asyncio.gather(*consumers, return_exceptions=True)
    soak.outcomes["consumer died"] = sum(not isinstance(end, asyncio.CancelledError) for end in ends)
    return rotations


def observe(soak: Soak, number: int) -> None:
    """Record memory and sockets."""
    for app in soak.apps:
        app.state.requests.clear()
    gc.collect()
    soak.rows.append((number, memory_mb(os.getpid()), open_sockets(os.getpid())))


async def settle(soak: Soak, rotations: dict[str, Any]) -> list[str]:
    """Stop the faults, run every rotation twice, and return where ledger, destination and OpenRouter disagree."""
    from flows import rotate
    from tasks.model.keys import fingerprint
    from tasks.world.ledgers import read_ledger

    soak.prefect_fails = False
    for app in soak.apps:
        app.state.faults.clear()
    wrong, explained = [], set()
    for subject in rotations.values():
        await rotate(subject, return_state=True)
    await asyncio.sleep(OVERLAP.total_seconds())
    for name, subject in rotations.items():
        await rotate(subject, return_state=True)
        ledger = await read_ledger(name)
        explained |= ledger.hashes()
        held = fingerprint(SecretStr(await read_key(subject.destinations[0])))
        if ledger.current is None or ledger.current.fingerprint != held:
            wrong.append(f"{name}: ledger and destination differ")
    orphans = {key.hash for key in soak.sandbox.live_keys()} - explained
    return [*wrong, *(f"orphan {key}" for key in orphans)]


def show(soak: Soak, wrong: list[str], seconds: float, console: Console) -> bool:
    """Print the table, and return whether no request failed, nothing is left over, and nothing has leaked."""
    failed = soak.answers.total() - soak.answers[httpx.codes.OK]
    memory = growth([used for _, used, _ in soak.rows])
    sockets = lasting_growth([opened for _, _, opened in soak.rows])
    table = Table("what", "number", "aim", title="Soak")
    table.add_row("rotation runs", str(soak.outcomes["Completed"] + soak.outcomes["Failed"]), "")
    table.add_row("of them failed, and healed by a later one", str(soak.outcomes["Failed"]), "")
    table.add_row("calls to Prefect's API that failed", str(soak.struck.total()), "more than 0")
    table.add_row("keys made", str(len(soak.sandbox.created)), "")
    table.add_row("requests by consumers", str(sum(soak.answers.values())), "more than 0")
    table.add_row("failed requests", str(failed), "0")
    table.add_row("consumers that died", str(soak.outcomes["consumer died"]), "0")
    table.add_row("orphans and disagreements", str(len(wrong)), "0")
    for number, held, opened in (soak.rows[0], soak.rows[len(soak.rows) // 2], soak.rows[-1]):
        table.add_row(f"after {number} runs", f"{held:.0f} MB, {opened} sockets", "")
    table.add_row("memory, last quarter / first quarter", f"{memory.share:+.1%}", f"at most {MEMORY_TOLERANCE:+.0%}")
    table.add_row(
        "sockets, last quarter - first quarter", f"{sockets.difference:+.0f}", f"at most {SOCKETS_TOLERANCE:+d}"
    )
    table.add_row("seconds", f"{seconds:.0f}", "")
    console.print(table)
    for line in wrong:
        console.print(f"[red]{line}[/]")
    is_flat = memory.share <= MEMORY_TOLERANCE and sockets.difference <= SOCKETS_TOLERANCE
    all_worked = failed == 0 and not wrong and not soak.outcomes["consumer died"]
    return is_flat and all_worked and bool(soak.answers) and bool(soak.struck)


def main() -> int:
    """Run the soak test and print its table.

    Returns:
        The exit code: 0 if no request failed, nothing is left over, and nothing has leaked; 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--names", type=int, default=20)
    chosen, console, begun = parser.parse_args(), Console(), time.monotonic()
    sandbox = OpenRouterSandbox()
    apps = [openrouter.create_app(sandbox), vault.create_app(), infisical.create_app()]
    with ExitStack() as open_, Stack() as stack, stack.as_client():
        logging.disable(logging.CRITICAL)
        soak = Soak(sandbox, apps, [open_.enter_context(running(app)) for app in apps], chosen.names)

        async def whole() -> list[str]:
            with prefect_between(soak):
                return await settle(soak, await soak_through(soak, chosen.runs, console))

        wrong = asyncio.run(whole())
    return 0 if show(soak, wrong, time.monotonic() - begun, console) else 1


if __name__ == "__main__":
    sys.exit(main())
