"""Measure rotations against Prefect itself, and print a table."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import httpx
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from bench import costs, lists, workers
from bench.measuring import REQUESTS_PER_SECOND, ROTATIONS_UNDER_LOAD, Bench, rotation, timed
from sandbox import infisical, openrouter, vault
from sandbox.consumers import Consumer, read_secret
from sandbox.isolation import DIRECTORY
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.postgres import PROGRAMS, postgres, settings_of
from sandbox.server import running
from sandbox.setup import CONNECTION, prepare
from sandbox.stack import Stack
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.model.keys import NOT_YET_ROTATED
from tasks.world.deployments import accepts_zone, schedule_of

DATABASES = ["SQLite"] if PROGRAMS is None else ["SQLite", "PostgreSQL"]
PAIRS = 15
IN_A_ROW = 100
HERD = 200
MANY = 2000
OVERVIEW_ROTATIONS = 500
OVERVIEW_SETTLE_SECONDS = 20.0
"""How long Prefect's scheduler gets to schedule the runs of that many deployments."""


async def calls(bench: Bench) -> None:
    """Count the calls to OpenRouter in a small and in a large account, and the calls per destination."""
    from flows import rotate

    destinations = await three_destinations(bench)
    subject = rotation("bench-calls", *destinations)
    await rotate(subject, return_state=True)
    counted = {}
    for keys in (10, 10_000):
        bench.sandbox.seed_keys(keys - len(bench.sandbox.live_keys()))
        logs = [app.state.requests for app in (bench.openrouter_app, bench.vault_app, bench.infisical_app)]
        for log in logs:
            log.clear()
        await timed(lambda: rotate(subject, return_state=True))
        counted[keys] = [len([path for _, path in log if "login" not in path]) for log in logs]
    small, large = counted[10], counted[10_000]
    same = f"{small[0]} and {large[0]}"
    bench.row(
        "OpenRouter calls, 10 and 10,000 keys", same, "equal, at most 4", met=small[0] == large[0] and small[0] <= 4
    )
    # Read, write and read back; Vault's labels are a call of their own.
    bench.row("calls to Vault per rotation", str(large[1]), "at most 4", met=large[1] <= 4)
    bench.row("calls to Infisical per rotation", str(large[2]), "at most 3", met=large[2] <= 3)


async def three_destinations(bench: Bench) -> list[str]:
    """Create a Prefect secret, a Vault secret and an Infisical secret."""
    from prefect.blocks.system import Secret

    import blocks
    from blocks.vault.auth import TokenAuth

    await Secret(value=NOT_YET_ROTATED).asave("bench", overwrite=True)
    credentials = blocks.VaultCredentials(url=bench.vault_app.state.url, auth=TokenAuth(token=ROOT_TOKEN))
    await blocks.VaultSecret(credentials=credentials, path="bench").asave("bench", overwrite=True)
    identity = blocks.InfisicalCredentials(
        host=bench.infisical_app.state.url, client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET
    )
    secret = blocks.InfisicalSecret(
        credentials=identity, project_id=infisical.PROJECT_ID, environment="prod", name="BENCH"
    )
    await secret.asave("bench", overwrite=True)
    return ["secret/bench", "vault-secret/bench", "infisical-secret/bench"]


async def under_load(bench: Bench) -> None:
    """Count failed requests of a consumer at a constant rate, over many rotations with an overlap."""
    from prefect.blocks.system import Secret

    from flows import retire, rotate

    await Secret(value=NOT_YET_ROTATED).asave("bench-load", overwrite=True)
    subject = rotation("bench-load", "secret/bench-load", overlap=timedelta(seconds=3))
    await rotate(subject, return_state=True)
    consumer = Consumer(bench.openrouter_url, partial(read_secret, "bench-load"), REQUESTS_PER_SECOND)
    working = asyncio.create_task(consumer.work())
    for _ in range(ROTATIONS_UNDER_LOAD):
        await timed(lambda: rotate(subject, return_state=True))
        await timed(lambda: retire(subject.name, return_state=True))
        await asyncio.sleep(0.5)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    failed, sent = consumer.failed, consumer.answers.total()
    what = f"failed requests at {REQUESTS_PER_SECOND}/s over {ROTATIONS_UNDER_LOAD} rotations"
    bench.row(what, f"{failed} of {sent}", "0", met=failed == 0 and sent > 0)


async def overview(bench: Bench, rotations: int) -> None:
    """Measure the overview of many rotations, each with a ledger, three scheduled runs and a completed one."""
    from prefect import get_client
    from prefect.client.schemas.actions import VariableCreate
    from prefect.context import AsyncClientContext
    from prefect.states import Completed

    from flows import rotate
    from flows.deployments import save_deployment
    from flows.show.overview import as_page, read_rows
    from tasks.model.schedules import parse_timetable
    from tasks.world.ledgers import term_variable

    timetable, now = parse_timetable(30, "03:30", "Europe/Berlin", accepts_zone), datetime.now(UTC)
    schedule = schedule_of(timetable, timetable.next_rotation(now, now))
    async with get_client() as client:
        for number in range(rotations):
            subject = rotation(f"bench-overview-{number}", "secret/bench")
            deployment = await save_deployment(None, subject, schedule, active=True)
            await client.create_variable(
                VariableCreate(name=term_variable(subject.name, 1), value=a_ledger(now), tags=["key-rotation"])
            )
            run = await client.create_flow_run(rotate, parameters=deployment.parameters)
            await client.set_flow_run_state(run.id, Completed(message="Rotated."), force=True)
    await asyncio.sleep(OVERVIEW_SETTLE_SECONDS)
    counted: list[str] = []

    async def count(request: httpx.Request) -> None:
        counted.append(request.url.path)

    async with AsyncClientContext.get_or_create() as context:
        context.client._client.event_hooks["request"].append(count)  # noqa: SLF001 - there is no public accessor
        begun = time.perf_counter()
        rows = await read_rows(now)
        page = as_page(rows, now)
        seconds = time.perf_counter() - begun
    scheduled = sum(row.facts.next_run is not None for row in rows)
    ended = sum(row.last.startswith("completed") for row in rows)
    found = f"{len(counted)} calls, {seconds:.1f} s, {len(page) // 1000} kB; {scheduled} scheduled, {ended} ended"
    met = len(rows) >= rotations and len(counted) <= 30 and seconds <= 5
    bench.row(f"overview of {len(rows)} rotations", found, "at most 30 calls and 5 s", met=met)


def a_ledger(now: datetime) -> dict[str, Any]:
    """Return a ledger with a current and a superseded key."""
    key = {"fingerprint": "0" * 16, "made_by": str(UUID(int=0)), "connection": CONNECTION}
    return {
        "current": {
            **key,
            "hash": "1" * 64,
            "label": "sk-or-v1-111...111",
            "since": now.isoformat(),
            "rotated_by": str(UUID(int=0)),
            "destinations": ["secret/bench"],
        },
        "superseded": [
            {**key, "hash": "2" * 64, "label": "sk-or-v1-222...222", "revoke_at": (now + timedelta(days=1)).isoformat()}
        ],
    }


async def measure(bench: Bench, share: float) -> None:
    """Take all measurements of a server with its embedded database.

    Args:
        bench: The setup.
        share: The share of the runs to make.
    """
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), bench.openrouter_url)
    await costs.calls(bench)
    await costs.wall_time(bench, "SQLite", part(PAIRS, share))
    await costs.longest(bench, part(IN_A_ROW, share))
    for measurement in (calls, lists.price, lists.floor, lists.calls, under_load, lists.under_load):
        await measurement(bench)
    await overview(bench, part(OVERVIEW_ROTATIONS, share))
    if PROGRAMS is None:
        await workers.compare(bench, "SQLite", part(HERD, share), part(MANY, share))


async def measure_on_postgresql(bench: Bench, share: float) -> None:
    """Take those measurements that depend on the database."""
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), bench.openrouter_url)
    await costs.wall_time(bench, "PostgreSQL", part(PAIRS, share))
    await workers.compare(bench, "PostgreSQL", part(HERD, share), part(MANY, share))


def part(number: int, share: float) -> int:
    """Return a share of a number of runs, at least three."""
    return max(3, round(number * share))


@contextmanager
def database_settings(database: str) -> Iterator[dict[str, str]]:
    """Start a Prefect server's database, unless it is the embedded one, and yield the server's settings."""
    if database == "SQLite":
        yield {}
        return
    with TemporaryDirectory(dir=DIRECTORY) as folder, postgres(Path(folder)) as address:
        yield settings_of(address)


def on(database: str, share: float) -> int:
    """Measure on a database and print the table.

    Returns:
        The exit code: 0 if every target was met, 1 otherwise.
    """
    console = Console()
    table = Table("what", "measured", "aim", "met", title=f"Rotations, measured on {database}")
    sandbox = OpenRouterSandbox()
    apps = openrouter.create_app(sandbox), vault.create_app(), infisical.create_app()
    with ExitStack() as open_:
        urls = [open_.enter_context(running(app)) for app in apps]
        for app, url in zip(apps, urls, strict=True):
            app.state.url = url
        stack = open_.enter_context(Stack(open_.enter_context(database_settings(database))))
        open_.enter_context(stack.as_client())
        bench = Bench(stack, sandbox, apps[0], f"{urls[0]}/api/v1", apps[1], apps[2], table)
        measurements = measure if database == "SQLite" else measure_on_postgresql
        asyncio.run(measurements(bench, share))
    console.print(table)
    return 1 if bench.missed else 0


def main() -> int:
    """Run the benchmark on each database that is installed.

    Returns:
        The exit code: 0 if every target was met, 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="which share of the runs to make (default: all)")
    parser.add_argument("--on", choices=DATABASES, help="measure on this database only")
    asked = parser.parse_args()
    if asked.on:
        return on(asked.on, asked.share)
    print("Measuring; this takes about an hour, or the share of it that --share names …", flush=True)
    # One process per database: Prefect's clients keep the first server that they have found in a process.
    one = [sys.executable, "-m", "bench", "--share", str(asked.share), "--on"]
    codes = [subprocess.run([*one, each], check=False).returncode for each in DATABASES]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
