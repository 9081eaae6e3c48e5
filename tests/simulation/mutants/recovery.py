"""Wrong versions of the situations that a run finds at its start, and of its reactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import tasks.audit.compare
import tasks.audit.repair
import tasks.create
import tasks.key.budget
import tasks.key.terms
import tasks.key.unrecorded
import tasks.life.due
import tasks.life.plan
import tasks.life.recover
import tasks.life.settings
import tasks.life.write_off
import tasks.model.decisions
import tasks.publish
import tasks.revoke
import tasks.verify
from tasks.model.decisions import Situation, assess
from tasks.model.keys import Marker
from tests.simulation.mutants.mutant import (
    SIMPLE,
    Mutant,
    nothing,
)


def _finding(wrong: Situation, *instead_of: Situation) -> Callable[..., Situation]:
    def found(*args: Any) -> Situation:
        right = assess(*args)
        return wrong if right in instead_of else right

    return found


RESTORED = ("rotate", "back_up_the_database", "restore_the_database")

MUTANTS = [
    Mutant(
        "a Retry makes a second key",
        tasks.life.recover,
        "assess",
        _finding(Situation.NOTHING_PENDING, Situation.ALREADY_ROTATED),
        ("rotate", "retry"),
        SIMPLE,
    ),
    Mutant(
        "a half-published key is thrown away",
        tasks.life.recover,
        "assess",
        _finding(Situation.NOTHING_PENDING, Situation.KEY_PUBLISHED),
        ("rotate",),
    ),
    Mutant(
        "an unpublished key is left behind",
        tasks.life.recover,
        "assess",
        _finding(Situation.NOTHING_PENDING, Situation.KEY_UNPUBLISHED),
        ("rotate",),
    ),
    Mutant(
        "keys are not found again after the ledger is lost",
        tasks.life.recover,
        "unrecorded_keys",
        mock.AsyncMock(return_value=[]),
        ("rotate", "delete_the_ledger"),
        SIMPLE,
    ),
    Mutant(
        "keys of another installation are taken up",
        Marker,
        "is_of",
        lambda *_: True,
        ("rotate", "delete_the_ledger"),
        SIMPLE,
    ),
    Mutant(
        "keys are this installation's only if it knows their runs",
        Marker,
        "is_of",
        lambda mark, _installations, known_runs: mark.run_id in known_runs,
        RESTORED,
        SIMPLE,
    ),
    Mutant(
        "a key that the ledger does not know is taken for somebody else's",
        tasks.life.recover,
        "is_key_among",
        lambda _secrets: False,
        RESTORED,
        SIMPLE,
    ),
    Mutant(
        '"no such key" is always believed',
        tasks.revoke,
        "confirm_gone",
        nothing,
        ("rotate", "exchange_the_management_key"),
        SIMPLE,
    ),
]
