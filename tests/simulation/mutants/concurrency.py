"""Wrong versions of what protects concurrent runs from each other, and a run from late writes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from types import FrameType
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
import tests.simulation.runs
from blocks.errors import ServiceError
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.model.rotation import Rotation
from tasks.steps import PLAIN
from tasks.world.ledgers import term_variable
from tasks.world.open_ledger import LedgerStore, LedgerTerm, OpenLedger, is_closed, prune
from tasks.world.run import Run, VerifiedKey
from tests.simulation.machine import Histories
from tests.simulation.mutants.mutant import (
    AT_ONCE,
    ROTATE,
    SIMPLE,
    Mutant,
    changed_rightly,
    nothing,
    published_rightly,
)
from tests.simulation.world.destinations import ModelDestination
from tests.simulation.world.ledgers import ModelStore

SEAMS = 3
"""How many modules up the call stack the step is found: the open ledger, the run, and the step itself."""


def _overwrite(self: ModelDestination, value: str | None, content: Any) -> None:
    self._place.put(value, content.other_fields)


async def _write_again_blindly(run: Run, place: Any, key: VerifiedKey, content: Any) -> Any:
    if failure := await _write_once(run, place, key, content):
        with contextlib.suppress(ServiceError):
            await place.write_content(key.secret, await place.read_content(), {})
    return failure


_write_once = tasks.publish._write


def _without_other_fields(self: ModelDestination, value: str | None, _content: Any) -> None:
    self._place.put(value, {})


async def _guard_but_for_revocations(self: OpenLedger) -> None:
    frame: FrameType | None = sys._getframe(1)
    callers: set[str] = set()
    while frame is not None and len(callers) < SEAMS:
        callers.add(frame.f_code.co_filename)
        frame = frame.f_back
    if tasks.revoke.__file__ not in callers:
        await _guard(self)


_guard = OpenLedger.guard


async def _revoke_unannounced(run: Run, key: Superseded, destinations: Any) -> None:
    with mock.patch.object(Ledger, "changed", lambda self, key_hash, **changes: _unannounced(self, key_hash, changes)):
        await PLAIN.revoke_key(run, key, destinations)


def _unannounced(ledger: Ledger, key_hash: str, changes: dict[str, Any]) -> Ledger:
    return changed_rightly(ledger, key_hash, **{name: value for name, value in changes.items() if name != "revoking"})


def _make_over(self: ModelStore, term: LedgerTerm) -> None:
    self._model.variables.pop(term_variable(self._rotation, term.number), None)
    _make(self, term)


_make = ModelStore._create


async def _prune_all_of_a_removed_rotation(store: LedgerStore, terms: Sequence[LedgerTerm]) -> None:
    if is_closed(terms[0].value):
        await store.delete([term.number for term in terms])
    else:
        await prune(store, terms)


async def _publish_unannounced(run: Run, rotation: Rotation, key: VerifiedKey, steps: Any) -> None:
    for name in rotation.destinations:
        await steps.publish(run, key, name)


def _published_for_good(self: Ledger, *args: Any, **_how: Any) -> Ledger:
    return published_rightly(self, *args)


MUTANTS = [
    Mutant("the ledger is not read again before a write", OpenLedger, "guard", nothing, ("rotate", "paused"), SIMPLE),
    Mutant(
        "the ledger is not read again before a revocation",
        OpenLedger,
        "guard",
        _guard_but_for_revocations,
        ("rotate", "overtaken"),
        AT_ONCE,
    ),
    Mutant(
        "a revocation is not announced",
        Histories,
        "steps",
        PLAIN._replace(revoke_key=_revoke_unannounced),
        ("rotate", "paused"),
        AT_ONCE,
    ),
    Mutant("check-and-set is dropped", ModelDestination, "_write", _overwrite, ("rotate", "paused"), SIMPLE),
    Mutant(
        "a write that lost its check-and-set is made again without a look at the ledger",
        tasks.publish,
        "_write",
        _write_again_blindly,
        ("rotate", "paused"),
        SIMPLE,
    ),
    Mutant("a write drops other fields", ModelDestination, "_write", _without_other_fields, ("rotate",), SIMPLE),
    Mutant(
        "a pending key that is given up is deleted without a fence",
        ModelDestination,
        "fence",
        nothing,
        ("rotate", "late_effects_happen"),
        AT_ONCE,
    ),
    Mutant(
        "a term of the ledger is made over another",
        ModelStore,
        "_create",
        _make_over,
        ("rotate", "paused"),
        SIMPLE,
    ),
    Mutant(
        "the last term of a removed rotation is deleted",
        tests.simulation.runs,
        "prune",
        _prune_all_of_a_removed_rotation,
        ("rotate", "paused"),
        SIMPLE,
    ),
    Mutant(
        "a key that a late write could still bring in is deleted",
        Ledger,
        "late_until",
        lambda *_: None,
        ("rotate", "late_effects_happen"),
        {**AT_ONCE, "names": ["secret/c"]},
    ),
    Mutant(
        "nobody is told that writes begin",
        ROTATE,
        "publish_everywhere",
        _publish_unannounced,
        ("rotate", "paused", "late_effects_happen"),
        {**AT_ONCE, "names": ["secret/c"]},
    ),
    Mutant(
        "a published key's late write is forgotten",
        Ledger,
        "published",
        _published_for_good,
        ("rotate", "late_effects_happen"),
        {**AT_ONCE, "names": ["secret/c"]},
    ),
]
