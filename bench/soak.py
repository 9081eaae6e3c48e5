"""Rotate for a long time under faults, with a consumer per rotation: `make soak`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette

from bench.__main__ import rotation
from sandbox import infisical, openrouter, vault
from sandbox.server import Fault, running
from sandbox.setup import prepare
from sandbox.stack import Stack

OVERLAP = timedelta(seconds=12)
CACHE_SECONDS = 3.0
"""How long a consumer keeps a key; far below the overlap."""
REQUESTS_PER_SECOND = 2
FAULTS = 0.05
CALLS = r"/keys|/key$|/v1/secret|/raw/|/login"
"""The calls that faults strike: everything that a rotation does, nothing that a consumer does."""
KINDS = ("secret", "vault-secret", "infisical-secret")


@dataclass
class Soak:
    """What a long run is made of, and what it found."""

    sandbox: openrouter.OpenRouterSandbox
    apps: list[Starlette]
    urls: list[str]
    names: int
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    rows: list[tuple[int, float, int]] = field(default_factory=list)


def own_memory_mb() -> float:
    """Say how much memory this process holds, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def own_sockets() -> int:
    """Count this process's open sockets."""
    links = (entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sum(str(link).startswith("socket:") for link in links)


def switch_faults_on(soak: Soak) -> None:
    """Let one call in twenty fail: half of them before it takes effect, half after."""
    for app in soak.apps:
        app.state.faults.add(Fault("before", path=CALLS, status=503, body="{}", probability=FAULTS / 2))
        app.state.faults.add(Fault("after", path=CALLS, probability=FAULTS / 2))


async def make_destinations(soak: Soak) -> dict[str, Any]:
    """Make a destination for each rotation, of each kind in turn.

    Returns:
        The rotations by name.
    """
    from prefect.blocks.system import Secret

    import blocks
    from blocks.vault import TokenAuth

    rotations = {}
    for number in range(soak.names):
        name, kind = f"soak-{number}", KINDS[number % 3]
        if kind == "secret":
            await Secret(value="placeholder").asave(name, overwrite=True)
        elif kind == "vault-secret":
            login = blocks.VaultCredentials(url=soak.urls[1], auth=TokenAuth(token=vault.ROOT_TOKEN))
            await blocks.VaultSecret(credentials=login, path=name).asave(name, overwrite=True)
        else:
            identity = blocks.InfisicalCredentials(
                host=soak.urls[2], client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET
            )
            place = {"project_id": infisical.PROJECT_ID, "environment": "prod", "name": name.upper()}
            await blocks.InfisicalSecret(credentials=identity, **place).asave(name, overwrite=True)
        rotations[name] = rotation(name, f"{kind}/{name}", overlap=OVERLAP)
    return rotations


async def read_secret(subject: Any) -> str:
    """Read a rotation's key as an application does, without the faults that strike rotations."""
    from tasks.destinations import open_destination

    destination = await open_destination(subject.destinations[0])
    try:
        held = await destination.read()
    finally:
        await destination.aclose()
    return "" if held.value is None else held.value.get_secret_value()


async def consume(soak: Soak, subject: Any) -> None:
    """Call the API with the rotation's key for ever, the key cached for a moment."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
    read_at, key = float("-inf"), ""
    async with httpx.AsyncClient(timeout=30, verify=False) as client:  # noqa: S501 - plain http on loopback
        while True:
            if time.monotonic() - read_at > CACHE_SECONDS:
                key, read_at = await read_secret(subject), time.monotonic()
            headers = {"Authorization": f"Bearer {key}"}
            answer = await client.post(f"{soak.urls[0]}/api/v1/chat/completions", json=body, headers=headers)
            soak.answers[answer.status_code] += 1
            await asyncio.sleep(1 / REQUESTS_PER_SECOND)


async def soak_through(soak: Soak, runs: int, console: Console) -> dict[str, Any]:
    """Rotate again and again, one name after the other.

    Returns:
        The rotations by name.
    """
    from flows import rotate

    await prepare(SecretStr(openrouter.DEFAULT_MANAGEMENT_KEY), f"{soak.urls[0]}/api/v1")
    rotations = await make_destinations(soak)
    for subject in rotations.values():
        assert (await rotate(subject, return_state=True)).is_completed()
    switch_faults_on(soak)
    consumers = [asyncio.create_task(consume(soak, subject)) for subject in rotations.values()]
    for number in range(runs):
        state = await rotate(rotations[f"soak-{number % soak.names}"], return_state=True)
        soak.outcomes[state.name] += 1
        if number % 100 == 99 or number == runs - 1:
            observe(soak, number + 1)
            console.print(f"{number + 1} runs: {dict(soak.outcomes)}")
    for consumer in consumers:
        consumer.cancel()
    ends = await asyncio.gather(*consumers, return_exceptions=True)
    soak.outcomes["consumer died"] = sum(not isinstance(end, asyncio.CancelledError) for end in ends)
    return rotations


def observe(soak: Soak, number: int) -> None:
    """Write memory and sockets down."""
    for app in soak.apps:
        app.state.requests.clear()
    gc.collect()
    soak.rows.append((number, own_memory_mb(), own_sockets()))


async def settle(soak: Soak, rotations: dict[str, Any]) -> list[str]:
    """Switch the faults off, let every rotation run twice more, and compare ledger, destination and OpenRouter.

    Returns:
        What does not agree.
    """
    from prefect.variables import Variable

    from flows import rotate
    from tasks.ledger import Ledger, fingerprint, ledger_variable

    for app in soak.apps:
        app.state.faults.clear()
    wrong, explained = [], set()
    for subject in rotations.values():
        await rotate(subject, return_state=True)
    await asyncio.sleep(OVERLAP.total_seconds())
    for name, subject in rotations.items():
        await rotate(subject, return_state=True)
        ledger = Ledger.model_validate(await Variable.aget(ledger_variable(name)))
        explained |= ledger.hashes()
        held = fingerprint(SecretStr(await read_secret(subject)))
        if ledger.current is None or ledger.current.fingerprint != held:
            wrong.append(f"{name}: ledger and destination differ")
    orphans = {key.hash for key in soak.sandbox.live_keys()} - explained
    return [*wrong, *(f"orphan {key}" for key in orphans)]


def show(soak: Soak, wrong: list[str], seconds: float, console: Console) -> bool:
    """Print the table.

    Returns:
        Whether nothing failed.
    """
    failed = sum(count for status, count in soak.answers.items() if status != httpx.codes.OK)
    table = Table("what", "number", title="Soak")
    table.add_row("rotation runs", str(soak.outcomes["Completed"] + soak.outcomes["Failed"]))
    table.add_row("of them failed, and healed by a later one", str(soak.outcomes["Failed"]))
    table.add_row("keys made", str(len(soak.sandbox.created)))
    table.add_row("requests by consumers", str(sum(soak.answers.values())))
    table.add_row("failed requests", str(failed))
    table.add_row("orphans and disagreements", str(len(wrong)))
    for number, memory, sockets in (soak.rows[0], soak.rows[-1]):
        table.add_row(f"after {number} runs", f"{memory:.0f} MB, {sockets} sockets")
    table.add_row("seconds", f"{seconds:.0f}")
    console.print(table)
    for line in wrong:
        console.print(f"[red]{line}[/]")
    return failed == 0 and not wrong and not soak.outcomes["consumer died"] and sum(soak.answers.values()) > 0


def main() -> int:
    """Soak and show.

    Returns:
        0 if no request failed and nothing is left over.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--names", type=int, default=20)
    chosen, console, begun = parser.parse_args(), Console(), time.monotonic()
    sandbox = openrouter.OpenRouterSandbox()
    apps = [openrouter.create_app(sandbox), vault.create_app(), infisical.create_app()]
    with ExitStack() as open_, Stack() as stack, stack.as_client():
        logging.disable(logging.CRITICAL)
        soak = Soak(sandbox, apps, [open_.enter_context(running(app)) for app in apps], chosen.names)

        async def whole() -> list[str]:
            return await settle(soak, await soak_through(soak, chosen.runs, console))

        wrong = asyncio.run(whole())
    return 0 if show(soak, wrong, time.monotonic() - begun, console) else 1


if __name__ == "__main__":
    sys.exit(main())
