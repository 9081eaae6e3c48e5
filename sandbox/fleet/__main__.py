"""Rotate hundreds of keys on a fleet while its parts are killed, and print what happened."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import suppress
from random import Random

from rich.console import Console

from sandbox.consumers import read_key
from sandbox.fleet.consumers import Consumers
from sandbox.fleet.herd import Herd
from sandbox.fleet.kills import DOWN_SECONDS, KINDS, kill
from sandbox.fleet.setup import NOT_INSTALLED, Site, can_run, started
from sandbox.fleet.trial_results import TrialResults, examine, show

CONSUMED = 20


async def trial(site: Site, herd: Herd, asked: argparse.Namespace, console: Console) -> TrialResults:
    """Make all rotations due twice: first undisturbed, then with kills and with consumers that use the keys."""
    await herd.prepare()
    console.print(f"{len(herd.rotations)} rotations are due at once; nothing is killed.")
    calm = await herd.start(0)
    await herd.settle(calm)
    console.print(f"  finished: {len(calm.finished)} in {calm.seconds:.0f} s")
    consumers = Consumers(site.base_url, read_key)
    await consumers.begin(herd.consumed)
    working = asyncio.create_task(consumers.work())
    console.print("They are due again, while consumers use the keys and parts of the fleet are killed:")
    disturbed = await herd.start(asked.over)
    kills = asyncio.create_task(kill(site.fleet, asked.kills, asked.down, Random(asked.seed), console.print))
    await herd.settle(disturbed)
    await kills
    console.print(f"  finished: {len(disturbed.finished)} in {disturbed.seconds:.0f} s")
    console.print("The overlaps end:")
    await herd.until_retired(site.account)
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return await examine(herd, calm, disturbed, consumers, site.account, site.receiver)


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
    if not can_run(console):
        return NOT_INSTALLED
    with started(console) as site:
        herd = Herd(asked.rotations, min(CONSUMED, asked.rotations), site.vault_url)
        results = asyncio.run(trial(site, herd, asked, console))
        results.started_again = site.fleet.started_again
    return 0 if show(results, time.monotonic() - begun, console) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
