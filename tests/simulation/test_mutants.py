"""The simulation can fail: every wrong version of the protocol is caught.

`make mutants` prints the table, and lets the right version live through as many histories of the same kind.
"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.hunt import hunt
from tests.simulation.mutants.mutant import Mutant

# A time-out that is raised inside a history is to Hypothesis a failure of that history, and a flaky one, as it does not
# come again when the history is replayed. By the other method it ends the process and says so.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200, method="thread")]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.wrong)
def test_a_wrong_version_is_caught(mutant: Mutant) -> None:
    """Histories run until one of them breaks a promise, and one does."""
    assert hunt(mutant).by is not None
