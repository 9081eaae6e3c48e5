"""Catch a mutant: run histories until one of them breaks a promise."""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from typing import cast

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import Histories, histories_of
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.promises import BrokenPromiseError
from tests.simulation.watching import COUNTED

MAX_HISTORIES = 3_000
STEPS = 30


@dataclass(frozen=True)
class Caught:
    """The result of a hunt."""

    by: str | None
    seconds: float
    histories: int


def hunt(mutant: Mutant, histories: int = MAX_HISTORIES) -> Caught:
    """Run histories until one of them breaks a promise.

    Args:
        mutant: The mutant.
        histories: The number of histories after which it has escaped.

    Returns:
        The promise that it broke, `None` if it escaped, and how long the hunt took.

    Raises:
        Exception: The simulation itself failed, which proves nothing about the mutant.
    """
    begun, before = time.monotonic(), COUNTED["histories"]
    by = None
    chosen = settings(
        max_examples=histories,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    machine = histories_of(*mutant.among, **mutant.begun_with)

    # For a class, Hypothesis would read and hash its whole module, which takes longer than some hunts.
    @seed(0)
    def begin() -> Histories:
        return machine()

    with mutant.planted(), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_state_machine_as_test(cast("type[Histories]", begin), settings=chosen)
        except BrokenPromiseError as broken:
            by = str(broken)
    return Caught(by, time.monotonic() - begun, COUNTED["histories"] - before)
