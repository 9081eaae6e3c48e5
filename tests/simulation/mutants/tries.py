"""Wrong versions of the tries after a failure that passes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from tasks.model import tries
from tasks.model.tries import NUMBER, Coming, Next, Try
from tests.simulation.mutants.mutant import DAY, SIMPLE, Mutant

followed_rightly = tries.next_try


def any_regular_run_stands_for_a_try(
    name: str, failed: Try, coming: Sequence[Coming], now: datetime, **how: Any
) -> Next:
    """Treat the failed run as a scheduled one."""
    return followed_rightly(name, replace(failed, scheduled_for=now), coming, now, **how)


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
        "a regular run stands for what a person has ordered",
        tries,
        "next_try",
        any_regular_run_stands_for_a_try,
        ("rotate_with_tries",),
        {**SIMPLE, "minimum_age": DAY},
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
