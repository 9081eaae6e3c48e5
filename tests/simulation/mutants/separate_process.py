"""Hunt in a process that has imported nothing but the simulation.

Hypothesis also draws constants from the modules that a process has imported, so the imports of other tests in the
same process would change the histories of a seed.
"""

from __future__ import annotations

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.hunt import Caught, hunt


def hunt_for(wrong: str) -> Caught:
    """Hunt the mutant with this description."""
    [mutant] = [mutant for mutant in MUTANTS if mutant.wrong == wrong]
    return hunt(mutant)
