"""Wrong versions of how a rotation tracks and reports the former places of its keys."""

from __future__ import annotations

import flows.show.sentences
import tasks.revoke
import tasks.world.run
from tasks.model.records import MadeKey
from tests.simulation.mutants.mutant import SIMPLE, Mutant

MUTANTS = [
    Mutant(
        "a place is known by the name of its block",
        tasks.world.run,
        "is_same",
        lambda *_: True,
        ("rotate", "edit_a_block", "retire"),
        SIMPLE,
    ),
    Mutant(
        "nobody remembers the places that a key was left at",
        MadeKey,
        "leaving",
        lambda key, *_: key,
        ("rotate", "edit_a_block", "retire", "the_clock_jumps"),
        SIMPLE,
    ),
    Mutant(
        "a run does not name the places that it has left",
        flows.show.sentences,
        "left_behind",
        lambda _ledger: [],
        ("rotate", "edit_a_block"),
        SIMPLE,
    ),
    Mutant(
        "a key that ends at a former place ends in silence",
        tasks.revoke,
        "_warn_of_consumers_left",
        lambda *_: None,
        ("rotate", "edit_a_block"),
        SIMPLE,
    ),
]
