"""Measure what grows with the number of rotations, and what with their history: `python -m bench.scale`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from prefect import get_client
from prefect.context import AsyncClientContext
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from bench.costs import prepared
from bench.history import make_template, multiply
from bench.measuring import Bench, counted
from flows import audit, check_connections, overview, rotate
from flows.status import read as read_status
from sandbox import infisical, openrouter, vault
from sandbox.isolation import DIRECTORY
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.postgres import PROGRAMS, postgres, settings_of
from sandbox.server import running
from sandbox.setup import CONNECTION, prepare
from sandbox.stack import Stack

ROTATIONS = 2_000
RUNS_EACH = 30
KEYS = 10_000
TIMES = 3
"""How often each measurement is repeated; the fastest counts, because the machine is shared."""
MOST_FOR_A_ROTATION = 2.0
"""How many times as long as on an empty server a rotation may take."""


class Cost(NamedTuple):
    """The cost of an operation: requests to Prefect's API, and seconds."""

    calls: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.calls} calls, {self.seconds:.2f} s"


async def costs_of(bench: Bench, subject: Any, times: int) -> dict[str, Cost]:
    """Measure each operation, by its name."""
    measured = {
        "a rotation": lambda: rotate(subject, return_state=True),
        "the overview": lambda: overview(return_state=True),
        "make status": read_status,
        "check-connections": lambda: check_connections(return_state=True),
        f"an audit of {KEYS:,} keys": lambda: audit(CONNECTION, return_state=True),
        "the form of add-rotation": open_form,
    }
    return {what: await _cost(bench, run, times) for what, run in measured.items()}


async def open_form() -> None:
    """Send the dashboard's requests for the form of add-rotation: its deployment, and the blocks in its pickers."""
    async with get_client() as client:
        await client.read_deployment_by_name("add-rotation/add-rotation")
        for slug in ("openrouter-credentials", "secret"):
            wanted = {"block_types": {"slug": {"any_": [slug]}}, "limit": 200}
            await client.request("POST", "/block_documents/filter", json=wanted)


async def _cost(bench: Bench, run: Callable[[], Awaitable[Any]], times: int) -> Cost:
    found = []
    for _ in range(times):
        async with AsyncClientContext.get_or_create():
            with counted(bench.stack.port) as seen:
                begun = time.perf_counter()
                state = await run()
                found.append(Cost(len(seen), time.perf_counter() - begun))
        if hasattr(state, "is_crashed"):
            assert not state.is_crashed(), state.message
    return min(found, key=lambda cost: cost.seconds)


async def measure(bench: Bench, address: str, asked: argparse.Namespace) -> dict[str, list[Cost]]:
    """Measure on an empty server, and again with many rotations and their history."""
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), bench.openrouter_url)
    bench.stack.cli("deploy", "--all", "--no-prompt")
    bench.sandbox.seed_keys(KEYS - asked.rotations)
    subject = await prepared("scale-measured")
    await make_template()
    rounds = [await costs_of(bench, subject, asked.times)]
    await multiply(bench, address, asked.rotations, asked.runs_each)
    rounds.append(await costs_of(bench, subject, asked.times))
    return {what: [each[what] for each in rounds] for what in rounds[0]}


def show(found: dict[str, list[Cost]], asked: argparse.Namespace) -> bool:
    """Print the table, and return whether a rotation is not slowed down by the others."""
    full = f"{asked.rotations:,} rotations, {asked.rotations * asked.runs_each:,} old runs"
    table = Table("what", "empty server", full, "times as long", title="Scale, on PostgreSQL")
    for what, (empty, many) in found.items():
        table.add_row(what, str(empty), str(many), f"{many.seconds / empty.seconds:.1f}")
    Console().print(table)
    empty, many = found["a rotation"]
    return many.seconds <= MOST_FOR_A_ROTATION * empty.seconds and many.calls <= empty.calls + 1


def main() -> int:
    """Measure, and print the table.

    Returns:
        The exit code: 0 if a rotation is not slowed down by the others, 1 if it is, 3 without PostgreSQL.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--rotations", type=int, default=ROTATIONS)
    parser.add_argument("--runs-each", type=int, default=RUNS_EACH, help="old runs of each rotation")
    parser.add_argument("--times", type=int, default=TIMES, help="how often each thing is done")
    asked = parser.parse_args()
    if PROGRAMS is None:
        print("PostgreSQL is not installed: install Debian's package postgresql.")
        return 3
    logging.disable(logging.CRITICAL)
    sandbox = OpenRouterSandbox()
    apps = openrouter.create_app(sandbox), vault.create_app(), infisical.create_app()
    with ExitStack() as open_:
        url = open_.enter_context(running(apps[0]))
        folder = open_.enter_context(TemporaryDirectory(dir=DIRECTORY))
        address = open_.enter_context(postgres(Path(folder)))
        stack = open_.enter_context(Stack(settings_of(address)))
        open_.enter_context(stack.as_client())
        bench = Bench(stack, sandbox, apps[0], f"{url}/api/v1", apps[1], apps[2], Table())
        found = asyncio.run(measure(bench, address, asked))
    return 0 if show(found, asked) else 1


if __name__ == "__main__":
    sys.exit(main())
