"""Run many histories and print a summary: `make simulate`, or `python -m tests.simulation --steps 1000000`."""

from __future__ import annotations

import argparse
import secrets
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.console import Console
from rich.table import Table

from tests.simulation.machine import Histories
from tests.simulation.watching import COUNTED, STORIES

STEPS_PER_HISTORY = 50


def simulate(steps: int, chosen_seed: int, machine: type[Histories] = Histories) -> None:
    """Run histories of about this many steps in total, fewer if some end early; shrink a failing one."""
    run_state_machine_as_test(
        seed(chosen_seed)(machine),
        settings=settings(
            max_examples=max(1, steps // STEPS_PER_HISTORY),
            stateful_step_count=STEPS_PER_HISTORY,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


def main() -> None:
    """Read the command line, simulate, and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    chosen = parser.parse_args()
    console, begun = Console(), time.monotonic()
    console.print(f"seed {chosen.seed}")
    while COUNTED["steps"] < chosen.steps:
        simulate(chosen.steps - COUNTED["steps"], chosen.seed + COUNTED["histories"])
    table = Table("what", "number", title="Simulated histories")
    for name in (
        "histories",
        "steps",
        "runs",
        "effects",
        "crashes",
        "faults",
        "pauses",
        "findings",
        "repairs",
        "restored ledgers",
    ):
        table.add_row(name, f"{COUNTED[name]:,}")
    table.add_row("digest of the stories", STORIES.hexdigest()[:16])
    table.add_row("seconds", f"{time.monotonic() - begun:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
