"""Wrong versions of the protocol, planted one at a time: the simulation must catch each of them.

`make mutants` prints the table. A simulation that cannot fail proves nothing.
"""

from __future__ import annotations

from tests.simulation.mutants import (
    concurrency,
    lists,
    operations,
    order,
    places,
    recovery,
    retirement,
    settings,
    tries,
)
from tests.simulation.mutants.mutant import Mutant

MUTANTS: list[Mutant] = [
    *order.MUTANTS,
    *concurrency.MUTANTS,
    *recovery.MUTANTS,
    *retirement.MUTANTS,
    *places.MUTANTS,
    *settings.MUTANTS,
    *operations.MUTANTS,
    *lists.MUTANTS,
    *tries.MUTANTS,
]
"""All mutants."""
