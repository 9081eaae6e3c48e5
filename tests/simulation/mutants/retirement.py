"""Wrong versions of the end of superseded keys."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import tasks.audit.compare
import tasks.audit.repair
import tasks.create
import tasks.key.budget
import tasks.key.terms
import tasks.key.unrecorded
import tasks.life.due
import tasks.life.plan
import tasks.life.recover
import tasks.life.restore
import tasks.life.settings
import tasks.life.write_off
import tasks.model.decisions
import tasks.publish
import tasks.revoke
import tasks.verify
from tasks.model.decisions import Judgement, Verdict, judge
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.model.rotation import Retirement
from tasks.world.run import NewKey, Run, VerifiedKey
from tests.simulation.mutants.mutant import (
    AT_ONCE,
    DAY,
    ROTATE,
    SIMPLE,
    Mutant,
    changed_rightly,
    nothing,
)

hastened_rightly = Ledger.hastened
TWO = ["vault-secret/a", "secret/c"]
REMOVE, RESTORE = importlib.import_module("flows.remove_rotation"), importlib.import_module("flows.restore_key")


async def _delete_at_once(run: Run, openrouter: Any, key: Superseded) -> None:
    await openrouter.delete_key(key.hash)
    await run.write(run.ledger.revoked(key.hash))


async def _enable_nothing(_run: Run, key: NewKey) -> VerifiedKey:
    return VerifiedKey(key.secret, key.record)


async def _nowhere(_run: Run, _keys: object) -> set[str]:
    return set()


async def _where_the_current_key_is(run: Run, _keys: object) -> set[str]:
    return set(run.ledger.current.destinations) if run.ledger.current else set()


def _judge_as_if(**changes: Any) -> Callable[..., Judgement]:
    def judged(key: Superseded, policy: Retirement, *rest: Any) -> Judgement:
        return judge(key, policy.model_copy(update=changes), *rest)

    return judged


def _disabled_is_due(self: Ledger, key_hash: str, **changes: Any) -> Ledger:
    soon = {"revoke_at": changes["revoke_at"] - DAY} if changes.get("disabled") else {}
    return changed_rightly(self, key_hash, **{**changes, **soon})


def _hastened_and_forgotten(self: Ledger, *how: Any) -> Ledger:
    return hastened_rightly(self, *how).looked_again()


UNUSED = Retirement(
    retire_when="unused",
    quiet_time=timedelta(hours=2),
    max_overlap=timedelta(days=8),
    on_still_used="revoke",
)


KEEP = UNUSED.model_copy(update={"on_still_used": "keep"})
DISABLE = Retirement(revoke="disable-then-delete", disabled_for=timedelta(days=3))

MUTANTS = [
    Mutant(
        "a key that a destination holds is revoked",
        tasks.revoke,
        "needed_by",
        lambda *_: [],
        ("rotate", "put_a_former_key_back", "retire"),
        SIMPLE,
    ),
    Mutant("the overlap is ignored", Ledger, "due", lambda self, _now: list(self.superseded), ("rotate",), SIMPLE),
    Mutant("an emergency leaves older keys alive", Ledger, "hastened", lambda self, *_: self, ("rotate",), SIMPLE),
    Mutant(
        "a Retry that finds a later rotation leaves older keys alive",
        ROTATE,
        "retire_older_keys",
        nothing,
        ("rotate", "retry"),
        SIMPLE,
    ),
    Mutant(
        "nobody looks again for what arrives after an emergency",
        Ledger,
        "hastened",
        _hastened_and_forgotten,
        ("rotate",),
        {**SIMPLE, "names": ["secret/c"]},
    ),
    Mutant("retirements are never scheduled", Ledger, "due_times", lambda _self: [], ("rotate",), SIMPLE),
    Mutant(
        "a key is revoked although it is used",
        tasks.revoke,
        "judge",
        lambda *_: Judgement(Verdict.REVOKE),
        ("rotate", "spend", "retire"),
        {**SIMPLE, "retirement": UNUSED},
    ),
    Mutant(
        "the longest overlap is ignored",
        tasks.revoke,
        "judge",
        _judge_as_if(max_overlap=timedelta(days=365)),
        ("rotate", "spend", "retire", "the_clock_jumps"),
        {**SIMPLE, "retirement": UNUSED, "overlap": timedelta(days=7)},
    ),
    Mutant(
        "a key that is still used is not kept",
        tasks.revoke,
        "judge",
        _judge_as_if(on_still_used="revoke"),
        ("rotate", "go_on_using_a_former_key"),
        {**SIMPLE, "retirement": KEEP},
    ),
    Mutant(
        "a key is deleted that was to be disabled first",
        tasks.revoke,
        "_disable",
        _delete_at_once,
        ("rotate", "retire"),
        {**AT_ONCE, "retirement": DISABLE},
    ),
    Mutant(
        "a key that is about to expire is restored",
        tasks.life.restore,
        "_refuse_what_expires_too_soon",
        nothing,
        ("rotate", "restore", "the_clock_jumps"),
        {**SIMPLE, "key": {"expires_after": 9 * DAY}},
    ),
    Mutant(
        "a disabled key cannot be restored for long",
        Ledger,
        "changed",
        _disabled_is_due,
        ("rotate", "retire"),
        {**AT_ONCE, "retirement": DISABLE},
    ),
    Mutant(
        "a run looks only at the destinations that it names itself",
        tasks.life.due,
        "where_keys_are_read",
        _nowhere,
        ("rotate", "rotate_for_one_destination"),
        {**AT_ONCE, "names": TWO},
    ),
    Mutant(
        "a run looks only where the current key was published to",
        tasks.life.due,
        "where_keys_are_read",
        _where_the_current_key_is,
        ("rotate", "rotate_for_one_destination"),
        {**AT_ONCE, "names": TWO},
    ),
    Mutant(
        "a Retry of a removal takes away what has come back",
        REMOVE,
        "refuse_what_came_back",
        lambda _run: None,
        ("rotate", "remove", "retry_a_removal"),
        SIMPLE,
    ),
    Mutant(
        "a restored key is published before it is enabled",
        RESTORE,
        "enable",
        _enable_nothing,
        ("rotate", "restore"),
        {**AT_ONCE, "retirement": DISABLE},
    ),
]
