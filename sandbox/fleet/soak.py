"""Rotate on a fleet for an hour while calls fail and parts are killed: `python -m sandbox.fleet.soak`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from rich.console import Console

from sandbox.consumers import read_key
from sandbox.fleet.consumers import Consumers
from sandbox.fleet.herd import Herd, HerdRuns
from sandbox.fleet.kills import DOWN_SECONDS, KINDS, kill
from sandbox.fleet.setup import NOT_INSTALLED, Site, can_run, started
from sandbox.fleet.trial_results import SHOWN, TrialResults, examine, print_table
from sandbox.server import Fault
from sandbox.usage import Quarters, growth, lasting_growth, memory_mb, open_sockets

ROTATIONS = 20
ROUND_SECONDS = 100.0
"""The period within which each rotation is due once; with 20 rotations, one every five seconds."""
KILL_EVERY_SECONDS = 180.0
FAULTS = 0.05
"""The share of the calls to OpenRouter and Vault that fail, half of them before they take effect, half after."""
CALLS = r"/keys|/key$|/byok|/observability|/v1/secret"
"""The calls that fail: those of rotations, and consumers' reads of Vault; never a consumer's use of its key."""
LOOK_SECONDS = 10.0
YOUNG = 12
"""How many measurements of a worker are not judged, because it is still loading modules."""
JUDGED = 24
"""How many further ones a worker must have, to be judged: four minutes."""
MEMORY_TOLERANCE = 0.10
SOCKETS_TOLERANCE = 10
NOT_JUDGED = Quarters(0.0, 0.0)


@dataclass
class WorkerUsage:
    """The memory and the sockets of the workers, by process id."""

    seen: dict[int, list[tuple[float, int]]] = field(default_factory=dict)

    async def watch(self, site: Site) -> None:
        """Measure all workers regularly, until cancelled."""
        while True:
            for name in KINDS["worker"]:
                process = site.fleet.parts[name].process
                # It may be killed meanwhile.
                with suppress(OSError, ValueError, IndexError):
                    self.seen.setdefault(process.pid, []).append((memory_mb(process.pid), open_sockets(process.pid)))
            await asyncio.sleep(LOOK_SECONDS)

    def worst(self) -> tuple[Quarters, Quarters, int]:
        """Return memory where it grew most by share, sockets where they grew most, and how many workers were judged."""
        judged = [rows[YOUNG:] for rows in self.seen.values() if len(rows) >= YOUNG + JUDGED]
        memory = [growth([used for used, _ in rows]) for rows in judged]
        opened = [lasting_growth([sockets for _, sockets in rows]) for rows in judged]
        return (
            max(memory, key=lambda each: each.share, default=NOT_JUDGED),
            max(opened, key=lambda each: each.difference, default=NOT_JUDGED),
            len(judged),
        )


def kinds_to_kill(random: Random) -> Iterator[str]:
    """Yield what to kill, each kind equally often, in random order."""
    while True:
        yield from random.sample(list(KINDS), len(KINDS))


async def soak(site: Site, herd: Herd, asked: argparse.Namespace, console: Console) -> tuple[TrialResults, WorkerUsage]:
    """Make each rotation due once in each round; afterwards, without faults, once more."""
    await herd.prepare()
    await herd.settle(await herd.start(0))
    consumers, usage = Consumers(site.base_url, read_key), WorkerUsage()
    await consumers.begin(herd.consumed)
    for app in (site.openrouter_app, site.vault_app):
        app.state.faults.add(Fault("before", path=CALLS, status=503, body="{}", probability=FAULTS / 2))
        app.state.faults.add(Fault("after", path=CALLS, probability=FAULTS / 2))
    kinds = list(itertools.islice(kinds_to_kill(Random(asked.seed)), int(asked.minutes * 60 / KILL_EVERY_SECONDS)))
    working, watching = asyncio.create_task(consumers.work()), asyncio.create_task(usage.watch(site))
    pause = KILL_EVERY_SECONDS - DOWN_SECONDS
    kills = asyncio.create_task(kill(site.fleet, kinds, DOWN_SECONDS, Random(asked.seed), console.print, pause))
    end, rounds = time.monotonic() + asked.minutes * 60, list[HerdRuns]()
    while time.monotonic() < end:
        rounds.append(await herd.start(ROUND_SECONDS))
        console.print(
            f"round {len(rounds)}: {len(site.account.created)} keys made, {len(consumers.failed)} requests failed"
        )
        await asyncio.sleep(ROUND_SECONDS)
    await kills
    # What follows is another load than before: all are due at once, and use more sockets than one after the other.
    await _stop(watching)
    for app in (site.openrouter_app, site.vault_app):
        app.state.faults.clear()
    for outcome in rounds:
        await herd.settle(outcome)
    calm = await herd.start(0)
    await herd.settle(calm)
    await herd.until_retired(site.account)
    await _stop(working)
    return await examine(herd, calm, merged(rounds), consumers, site.account, site.receiver), usage


async def _stop(task: asyncio.Task[None]) -> None:
    if not task.cancel():
        task.result()  # it has failed
    await asyncio.gather(task, return_exceptions=True)


def merged(rounds: list[HerdRuns]) -> HerdRuns:
    """Return several outcomes as one."""
    runs = {run.id: run for outcome in rounds for run in outcome.runs}
    ids = {run_id for outcome in rounds for run_id in outcome.run_ids}
    return HerdRuns(rounds[0].due, ids, list(runs.values()), all(outcome.is_settled for outcome in rounds))


def show(results: TrialResults, usage: WorkerUsage, seconds: float, console: Console) -> bool:
    """Print the table, and return whether nothing was lost and nothing has leaked."""
    rotated, sent, failed = results.disturbed, sum(results.consumers.answers.values()), len(results.consumers.failed)
    memory, opened, judged = usage.worst()
    rows = [
        ("rotations finished", str(len(rotated.finished)), f"{len(rotated.run_ids)}", rotated.is_settled),
        ("most tries of one rotation", str(max(rotated.tries.values(), default=0)), "", True),
        ("parts started again", str(results.started_again.total()), "", True),
        ("requests sent by consumers", str(sent), "more than 0", sent > 0),
        ("requests failed", str(failed), "0", failed == 0),
        ("keys made", str(len(results.account.created)), "", True),
        ("keys left over", str(results.unretired), "0", results.unretired == 0),
        ("orphans", str(len(results.orphans)), "0", not results.orphans),
        ("rotations without one live key", str(len(results.wrong)), "0", not results.wrong),
        ("workers that lived long enough to be judged", str(judged), "more than 0", judged > 0),
        (
            "memory of a worker, growth",
            f"{memory.share:+.1%} ({memory.first:.1f} → {memory.last:.1f} MB)",
            f"at most {MEMORY_TOLERANCE:+.0%}",
            memory.share <= MEMORY_TOLERANCE,
        ),
        (
            "sockets of a worker, growth",
            f"{opened.difference:+g} ({opened.first:g} → {opened.last:g})",
            f"at most {SOCKETS_TOLERANCE:+d}",
            opened.difference <= SOCKETS_TOLERANCE,
        ),
        ("seconds in all", f"{seconds:.0f}", "", True),
    ]
    lines = [*results.consumers.failed[:SHOWN], *results.wrong[:SHOWN]]
    return print_table("A soak of a fleet", rows, lines, console)


def main() -> int:
    """Run the soak.

    Returns:
        The exit code: 0 if nothing was lost and nothing has leaked, 1 otherwise, 3 if a program is not installed.
    """
    parser = argparse.ArgumentParser(prog="python -m sandbox.fleet.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is killed when")
    asked, console, begun = parser.parse_args(), Console(), time.monotonic()
    if not can_run(console):
        return NOT_INSTALLED
    with started(console) as site:
        results, usage = asyncio.run(soak(site, Herd(ROTATIONS, ROTATIONS, site.vault_url), asked, console))
        results.started_again = site.fleet.started_again
    return 0 if show(results, usage, time.monotonic() - begun, console) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
