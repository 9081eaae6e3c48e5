"""A hunt in a process that has imported nothing but the simulation.

Hypothesis also draws constants that it finds in the modules which a process has imported, so what the other tests of a
process import changes the histories of a seed.
"""

from __future__ import annotations

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.hunt import Caught, hunt


def hunt_for(wrong: str) -> Caught:
    """Hunt the mutant of a name."""
    [mutant] = [mutant for mutant in MUTANTS if mutant.wrong == wrong]
    return hunt(mutant)
