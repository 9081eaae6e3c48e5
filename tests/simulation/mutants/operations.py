"""Wrong versions of removal, plan, audit and events."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest import mock
from uuid import UUID

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
from blocks.openrouter.keys import ApiKey
from tasks.audit.account_keys import KeyFilter
from tasks.life.plan import steps_ahead
from tasks.life.recover import observe
from tasks.model.decisions import Identity, Situation
from tasks.model.ledger import Ledger
from tasks.model.records import Current
from tasks.model.rotation import Rotation
from tasks.world.run import Run
from tests.simulation.mutants.mutant import (
    SIMPLE,
    Mutant,
    nothing,
)
from tests.simulation.world.orchestrator import ModelWorld


def _all_are_ours(keys: KeyFilter, _known: Collection[UUID]) -> None:
    keys.ours |= {key.hash: key for key in keys.undecided}
    keys.undecided.clear()


async def _current_unseen(run: Run, rotation: Rotation, key: ApiKey, now: datetime) -> Current:
    return Current(
        hash=key.hash,
        label=key.label,
        fingerprint="",
        connection=rotation.connection,
        since=now,
        destinations=tuple(rotation.destinations),
    )


def _still_removed(self: Ledger, pending: Any, _installation: str = "") -> Ledger:
    return self.model_copy(update={"pending": pending})


def _kept_all(self: Ledger, _now: datetime, _revoke_at: datetime, *_places: Any) -> Ledger:
    return self.model_copy(update={"removed": True})


async def _plan_and_sign(run: Run, rotation: Rotation) -> Situation:
    finding = await observe(run, rotation)
    await run.write(run.ledger)
    return finding


def _plan_without_emergency(finding: Any, ledger: Any, rotation: Any, run: Identity, *rest: Any) -> list[str]:
    return steps_ahead(finding, ledger, rotation, replace(run, emergency=False), *rest)


MUTANTS = [
    Mutant(
        "a rotation that is back counts as removed",
        Ledger,
        "intended",
        _still_removed,
        ("rotate", "remove", "retire"),
        SIMPLE,
    ),
    Mutant(
        "a removed rotation's keys live on", Ledger, "with_every_key_ended", _kept_all, ("rotate", "remove"), SIMPLE
    ),
    Mutant("a plan signs the ledger", tasks.life.plan, "observe", _plan_and_sign, ("plan",), SIMPLE),
    Mutant("a plan knows no emergency", tasks.life.plan, "steps_ahead", _plan_without_emergency, ("plan",), SIMPLE),
    Mutant("every marked key is called an orphan", KeyFilter, "decide", _all_are_ours),
    Mutant(
        "an audit finds no orphans",
        KeyFilter,
        "decide",
        lambda keys, _known: keys.undecided.clear(),
        ("rotate", "put_an_old_ledger_back"),
        SIMPLE,
    ),
    Mutant(
        "an audit does not look at rotations",
        tasks.audit.compare,
        "judge_rotation",
        lambda *_: iter(()),
        ("rotate", "disable_a_key", "audit"),
        SIMPLE,
    ),
    Mutant(
        "an audit never writes a lost ledger anew",
        tasks.audit.repair,
        "restore_ledger",
        mock.AsyncMock(return_value="it was not"),
        ("rotate", "audit_after_the_ledger_was_lost"),
        SIMPLE,
    ),
    Mutant(
        "a lost ledger is written without its destinations",
        tasks.audit.repair,
        "_current",
        _current_unseen,
        ("rotate", "audit_after_the_ledger_was_lost", "change_the_rotation", "retire"),
        SIMPLE,
    ),
    Mutant(
        "a run that has completed is begun anew",
        Identity,
        "completed",
        property(lambda _self: False, lambda _self, _value: None),
        ("rotate", "retry", "retire", "delete_the_ledger"),
        SIMPLE,
    ),
    Mutant(
        "any key is written off",
        tasks.life.write_off,
        "_refuse_what_can_be_revoked",
        nothing,
        ("rotate", "write_off", "exchange_the_management_key"),
        SIMPLE,
    ),
    Mutant(
        "any value is overwritten",
        tasks.life.recover,
        "_refuse_to_overwrite",
        lambda *_: None,
        ("rotate", "edit_a_destination", "permit_to_overwrite"),
        SIMPLE,
    ),
    Mutant(
        "a new key's name is not compared",
        tasks.verify,
        "names_agree",
        lambda *_: True,
        ("rotate", "openrouter_cuts_names"),
        SIMPLE,
    ),
    Mutant("nobody is told of anything", ModelWorld, "emit", nothing, ("rotate",), SIMPLE),
]
