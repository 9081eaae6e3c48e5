"""Show that the simulation can fail: it catches every wrong version of the protocol.

`make mutants` prints the table, and also runs the right version through as many histories of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.separate_process import hunt_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def alone() -> Iterator[ProcessPoolExecutor]:
    """A process that has imported nothing but the simulation."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.wrong)
def test_a_wrong_version_is_caught(mutant: Mutant, alone: ProcessPoolExecutor) -> None:
    """Some history breaks a promise before the hunt gives up."""
    assert alone.submit(hunt_for, mutant.wrong).result().by is not None
