"""Wrong versions of a key's settings, and of the decision which run rotates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
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
import tasks.life.settings
import tasks.life.write_off
import tasks.model.decisions
import tasks.publish
import tasks.revoke
import tasks.verify
from tasks.model.decisions import Identity
from tasks.model.ledger import Ledger
from tasks.model.records import Current
from tasks.model.rotation import KeySettings
from tasks.model.terms import Terms
from tasks.world.run import Run
from tests.simulation.mutants.mutant import (
    CARRIED,
    HOUR,
    SIMPLE,
    Mutant,
    nothing,
    published_rightly,
)


def _obeyed_by_all(ledger: Ledger, run: Identity, *rest: Any) -> bool:
    return _too_young(ledger, replace(run, scheduled_for=run.first_started), *rest)


_too_young = tasks.model.decisions._too_young


def _adopted_is_due(
    self: Ledger, run_id: Any, destinations: Any, now: datetime, at: datetime, policy: Any, **how: Any
) -> Ledger:
    end = at if self.current and self.current.made_by else now
    return published_rightly(self, run_id, destinations, now, end, policy, **how)


async def _never(*_: object) -> bool:
    return False


def _terms_without(*names: str) -> Callable[..., Terms]:
    def terms(self: KeySettings, now: datetime) -> Terms:
        return _terms(self, now).model_copy(update=dict.fromkeys(names))

    return terms


_terms = KeySettings.terms


def _apply_only_the_limit(*args: Any) -> dict[str, Any]:
    return {name: value for name, value in _changes(*args).items() if name == "limit"}


_changes = tasks.life.settings._changes


async def _recorded_as_current(run: Run, *_: object) -> Current | None:
    return run.ledger.current


MUTANTS = [
    Mutant(
        "a key is published without its guardrail",
        tasks.create,
        "_assign_guardrail",
        nothing,
        ("rotate",),
        {**SIMPLE, "key": {"guardrail_id": "guardrail-1"}},
    ),
    Mutant(
        "a key's end is ignored",
        KeySettings,
        "terms",
        _terms_without("expires_after", "expires_at"),
        ("rotate",),
        {**SIMPLE, "key": {"expires_after": timedelta(days=40)}},
    ),
    Mutant(
        "nothing is inherited",
        Terms,
        "or_else",
        lambda self, _former: self,
        ("rotate", "change_the_key"),
        {**SIMPLE, "key": {"guardrail_id": "guardrail-1", "inherit": True}},
    ),
    Mutant(
        "the settings' guardrail is not applied",
        tasks.life.settings,
        "_change_guardrail",
        nothing,
        ("rotate", "change_the_key", "apply_settings"),
        SIMPLE,
    ),
    Mutant(
        "only the limit is applied",
        tasks.life.settings,
        "_changes",
        _apply_only_the_limit,
        ("rotate", "change_the_key", "apply_settings"),
        SIMPLE,
    ),
    Mutant(
        "settings are inherited from the key of an outdated ledger",
        tasks.key.terms,
        "_source",
        _recorded_as_current,
        ("rotate", "change_the_key", "back_up_the_database", "restore_the_database"),
        {**SIMPLE, "key": {"inherit": True}},
    ),
    Mutant(
        "a carried budget starts afresh",
        tasks.key.terms,
        "carried_budget",
        lambda *_: None,
        ("rotate", "spend"),
        CARRIED,
    ),
    Mutant(
        "the former key of a carried budget may go on spending",
        tasks.life.due,
        "settle_budget",
        nothing,
        ("rotate", "spend"),
        CARRIED,
    ),
    Mutant(
        "a key that a late write may bring back is capped",
        tasks.key.budget,
        "_may_be_read",
        _never,
        ("rotate", "late_effects_happen"),
        {**CARRIED, "names": ["secret/c"]},
    ),
    Mutant(
        "the full limit never comes back",
        tasks.key.budget,
        "restore_budget",
        nothing,
        ("rotate", "spend", "retire", "the_clock_jumps"),
        {**CARRIED, "key": {"carry_budget": True, "limit_reset": "daily"}},
    ),
    Mutant(
        "the minimum age is ignored",
        tasks.model.decisions,
        "_too_young",
        lambda *_: False,
        ("rotate",),
        {**SIMPLE, "minimum_age": HOUR},
    ),
    Mutant(
        "a person's run obeys the minimum age",
        tasks.model.decisions,
        "_too_young",
        _obeyed_by_all,
        ("rotate",),
        {**SIMPLE, "minimum_age": HOUR},
    ),
    Mutant("no key is adopted", tasks.life.recover, "adopt", nothing, ("rotate",), {**SIMPLE, "adopts": True}),
    Mutant(
        "an adopted key gets no overlap", Ledger, "published", _adopted_is_due, ("rotate",), {**SIMPLE, "adopts": True}
    ),
]
