"""Wrong versions of what becomes of a run that has failed for something that passes by itself."""

from __future__ import annotations

from tasks.model import tries
from tasks.model.tries import NUMBER, Try
from tests.simulation.mutants.mutant import SIMPLE, Mutant

MUTANTS = [
    Mutant(
        "a person is called for what passes by itself",
        tries,
        "passes_by_itself",
        lambda _error: False,
        ("rotate_with_tries",),
        SIMPLE,
    ),
    Mutant(
        "a try is a run of its own",
        Try,
        "labels",
        lambda _self, number: {NUMBER: number},
        ("rotate_with_tries",),
        SIMPLE,
    ),
    Mutant(
        "what needs a person is tried for ever",
        tries,
        "passes_by_itself",
        lambda _error: True,
        ("rotate_with_tries", "revoke_the_management_key"),
        SIMPLE,
    ),
]
