"""The simulation can fail: every wrong version of the protocol is caught; `make mutants` prints the table."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, hunt


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.wrong)
def test_a_wrong_version_is_caught(mutant: Mutant) -> None:
    """Histories run until one of them breaks a promise, and one does; the right version lives through as many."""
    caught = hunt(mutant)
    right = hunt(mutant.undone(), caught.histories)

    assert caught.by is not None
    assert right.by is None
