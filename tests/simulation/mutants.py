"""Wrong versions of the protocol, planted one at a time: the simulation must catch every one of them.

`make mutants` prints the table. A simulation that cannot fail proves nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, cast
from unittest import mock
from uuid import UUID

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

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
from blocks.errors import ServiceError
from blocks.openrouter.keys import ApiKey
from tasks.audit.account_keys import KeyFilter
from tasks.key.terms import request_of
from tasks.life.plan import steps_ahead
from tasks.life.recover import observe
from tasks.model.decisions import Identity, Judgement, Situation, Verdict, assess, judge
from tasks.model.events import Event
from tasks.model.ledger import Current, Ledger, Superseded
from tasks.model.rotation import KeySettings, Retirement, Rotation
from tasks.model.terms import Terms
from tasks.steps import PLAIN
from tasks.world.ledgers import term_variable
from tasks.world.open_ledger import OpenLedger, Term
from tasks.world.run import NewKey, Run, VerifiedKey
from tests.simulation.machine import Histories, histories_of
from tests.simulation.promises import BrokenPromiseError
from tests.simulation.watching import COUNTED
from tests.simulation.world.destinations import ModelDestination
from tests.simulation.world.ledgers import ModelStore
from tests.simulation.world.orchestrator import ModelWorld

MAX_HISTORIES = 3_000
ROTATE = importlib.import_module("flows.rotate")  # the package exports the flow under the same name
RESTORE = importlib.import_module("flows.restore_key")
STEPS = 30
SEAMS = 3
"""The modules between a step and the look at the ledger: the open ledger, the run, the step itself."""


async def nothing(*_args: Any, **_how: Any) -> None:
    """Do nothing where something should be done."""


@dataclass(frozen=True)
class Mutant:
    """A wrong version: what is wrong with it, and what is put in place of what.

    One that needs several steps in a certain order is hunted `among` histories of only some of the machine's rules,
    `begun_with` a rotation that is filled in for it.
    """

    wrong: str
    target: Any
    name: str
    instead: Any
    among: tuple[str, ...] = ()
    begun_with: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant it."""
        with mock.patch.object(self.target, self.name, self.instead):
            yield

    def undone(self) -> Mutant:
        """Put the right version back, to see that it keeps the promise which this one broke."""
        return replace(self, instead=getattr(self.target, self.name))


async def _create_then_announce(run: Run, rotation: Any) -> Any:
    now = run.world.now()
    request = rotation.key.terms(now).request(rotation.key_name(run.identity.id, now))
    created = await (await run.world.connection(rotation.connection)).create_key(request)
    await tasks.create._announce(run, rotation, now)
    return created


async def _create_again(run: Run, rotation: Any) -> Any:
    now = run.world.now()
    openrouter = await run.world.connection(rotation.connection)
    request = request_of(await tasks.create._announce(run, rotation, now), rotation.key_name(run.identity.id, now))
    try:
        return await openrouter.create_key(request)
    except ServiceError:
        return await openrouter.create_key(request)


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


def _finding(wrong: Situation, *instead_of: Situation) -> Callable[..., Situation]:
    def found(*args: Any) -> Situation:
        right = assess(*args)
        return wrong if right in instead_of else right

    return found


def _forget_earlier(self: Ledger, *args: Any, **how: Any) -> Ledger:
    right = _published(self, *args, **how)
    return right.model_copy(update={"superseded": right.superseded[-1:]})


_published = Ledger.published


async def _believe_anything(run: Run, _rotation: Any, key: NewKey) -> VerifiedKey:
    await run.world.emit(Event.KEY_VERIFIED, run.name, **key.record.told())
    return VerifiedKey(key.secret, key.record)


async def _revoke_before_publishing(run: Run, rotation: Any, key: VerifiedKey, steps: Any) -> None:
    current = run.ledger.current
    if current is not None:
        await (await run.world.connection(current.connection)).delete_key(current.hash)
    await _publish_everywhere(run, rotation, key, steps)


_publish_everywhere = ROTATE.publish_everywhere


async def _publish_to_the_first(run: Run, rotation: Any, key: VerifiedKey, steps: Any) -> None:
    await steps.publish(run, key, rotation.destinations[0])


async def _delete_without_ledger(run: Run, key: Superseded, _destinations: Any) -> None:
    await (await run.world.connection(key.connection)).delete_key(key.hash)


def _leaky_fingerprint(secret: Any) -> str | None:
    return None if secret is None else str(secret.get_secret_value())


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


async def _believe_the_first_look(run: Run, **_how: Any) -> None:
    if run.ledger.pending and run.ledger.pending.key is None:
        await run.write(run.ledger.dropped())


async def _delete_at_once(run: Run, openrouter: Any, key: Superseded) -> None:
    await openrouter.delete_key(key.hash)
    await run.write(run.ledger.revoked(key.hash))


def _still_removed(self: Ledger, pending: Any) -> Ledger:
    return self.model_copy(update={"pending": pending})


async def _publish_garbage_first(run: Run, key: VerifiedKey, name: str) -> None:
    place = await run.world.destination(name)
    await run.guard()
    await place.write_content(SecretStr("garbage"), await place.read_content(), {})
    run.contents.pop(name, None)
    await PLAIN.publish(run, key, name)


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
    return _changed(ledger, key_hash, **{name: value for name, value in changes.items() if name != "revoking"})


_changed = Ledger.changed


async def _enable_nothing(_run: Run, key: NewKey) -> VerifiedKey:
    return VerifiedKey(key.secret, key.record)


def _obeyed_by_all(ledger: Ledger, run: Identity, *rest: Any) -> bool:
    return _too_young(ledger, replace(run, scheduled_for=run.first_started), *rest)


_too_young = tasks.model.decisions._too_young


def _adopted_is_due(
    self: Ledger, run_id: Any, destinations: Any, now: datetime, at: datetime, policy: Any, **how: Any
) -> Ledger:
    end = at if self.current and self.current.made_by else now
    return _published(self, run_id, destinations, now, end, policy, **how)


def _terms_without(*names: str) -> Callable[..., Terms]:
    def terms(self: KeySettings, now: datetime) -> Terms:
        return _terms(self, now).model_copy(update=dict.fromkeys(names))

    return terms


_terms = KeySettings.terms


def _judge_as_if(**changes: Any) -> Callable[..., Judgement]:
    def judged(key: Superseded, policy: Retirement, *rest: Any) -> Judgement:
        return judge(key, policy.model_copy(update=changes), *rest)

    return judged


def _disabled_is_due(self: Ledger, key_hash: str, **changes: Any) -> Ledger:
    soon = {"revoke_at": changes["revoke_at"] - DAY} if changes.get("disabled") else {}
    return _changed(self, key_hash, **{**changes, **soon})


def _apply_only_the_limit(*args: Any) -> dict[str, Any]:
    return {name: value for name, value in _changes(*args).items() if name == "limit"}


_changes = tasks.life.settings._changes


def _kept_all(self: Ledger, _now: datetime, _revoke_at: datetime) -> Ledger:
    return self.model_copy(update={"removed": True})


async def _plan_and_sign(run: Run, rotation: Rotation) -> Situation:
    finding = await observe(run, rotation)
    await run.write(run.ledger)
    return finding


def _plan_without_emergency(finding: Any, ledger: Any, rotation: Any, run: Identity, now: datetime) -> list[str]:
    return steps_ahead(finding, ledger, rotation, replace(run, emergency=False), now)


def _make_over(self: ModelStore, term: Term) -> None:
    self._model.variables.pop(term_variable(self._rotation, term.number), None)
    _make(self, term)


_make = ModelStore._create


async def _prune_all_of_a_removed_rotation(self: OpenLedger) -> None:
    if self.ledger.is_closed:
        await self._store.delete(self._stored)
    else:
        await _prune(self)


_prune = OpenLedger.prune


async def _publish_unannounced(run: Run, rotation: Rotation, key: VerifiedKey, steps: Any) -> None:
    for name in rotation.destinations:
        await steps.publish(run, key, name)


def _published_for_good(self: Ledger, *args: Any, **_how: Any) -> Ledger:
    return _published(self, *args)


UNUSED = Retirement(
    retire_when="unused",
    quiet_time=timedelta(hours=2),
    max_overlap=timedelta(days=8),
    on_still_used="revoke",
)
KEEP = UNUSED.model_copy(update={"on_still_used": "keep"})
DISABLE = Retirement(revoke="disable-then-delete", disabled_for=timedelta(days=3))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VAULT = ["vault-secret/a"]
SIMPLE = {
    "names": VAULT,
    "overlap": DAY,
    "retirement": Retirement(),
    "key": {},
    "minimum_age": timedelta(0),
    "adopts": False,
}
"""The form as it is filled in for a wrong version that needs nothing special."""
AT_ONCE = {**SIMPLE, "overlap": timedelta(0)}
CARRIED = {**SIMPLE, "key": {"carry_budget": True, "limit_reset": "monthly"}}

MUTANTS = [
    # --- the protocol's order ---
    Mutant(
        "the intent is written after the create", tasks.create, "_create_or_settle", _create_then_announce, ("rotate",)
    ),
    Mutant("the create is retried blindly", tasks.create, "_create_or_settle", _create_again, ("rotate",)),
    Mutant(
        "a lost create is never looked for", tasks.life.recover, "settle_intent", _believe_the_first_look, ("rotate",)
    ),
    Mutant("a create that may still turn up is forgotten", Ledger, "left_unresolved", Ledger.dropped, ("rotate",)),
    Mutant(
        "the new key is published before it works",
        Histories,
        "steps",
        PLAIN._replace(verify_key=_believe_anything),
        ("rotate", "new_keys_are_late"),
    ),
    Mutant(
        "garbage is written into a destination before the key",
        Histories,
        "steps",
        PLAIN._replace(publish=_publish_garbage_first),
        ("rotate",),
    ),
    Mutant(
        "the write to a destination is not read back",
        tasks.publish,
        "_has_arrived",
        lambda *_: True,
        ("rotate",),
        AT_ONCE,
    ),
    Mutant(
        "the old key is revoked before the new one is published",
        ROTATE,
        "publish_everywhere",
        _revoke_before_publishing,
        ("rotate",),
    ),
    Mutant(
        "one destination is enough",
        ROTATE,
        "publish_everywhere",
        _publish_to_the_first,
        ("rotate",),
        {"names": ["secret/c", "vault-secret/a"]},
    ),
    Mutant("the superseded key's hash is overwritten", Ledger, "published", _forget_earlier, ("rotate",), SIMPLE),
    Mutant("a revoked key stays in the ledger", Ledger, "revoked", lambda self, _hash: self, ("rotate",), AT_ONCE),
    Mutant(
        "a revocation leaves no trace in the ledger",
        Histories,
        "steps",
        PLAIN._replace(revoke_key=_delete_without_ledger),
        ("rotate",),
        AT_ONCE,
    ),
    Mutant("the fingerprint is the key itself", tasks.create, "fingerprint", _leaky_fingerprint, ("rotate",)),
    # --- two runs at once ---
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
        "an abandoned key is deleted without a fence",
        ModelDestination,
        "fence",
        nothing,
        ("rotate", "late_effects_happen"),
        AT_ONCE,
    ),
    # --- writes that come late ---
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
        OpenLedger,
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
    # --- what a run finds ---
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
        "keys_without_ledger",
        mock.AsyncMock(return_value=[]),
        ("rotate", "delete_the_ledger"),
        SIMPLE,
    ),
    Mutant("keys of another Prefect server are taken up", ModelWorld, "known_runs", mock.AsyncMock(side_effect=set)),
    Mutant(
        '"no such key" is always believed',
        tasks.revoke,
        "confirm_gone",
        nothing,
        ("rotate", "exchange_the_management_key"),
        SIMPLE,
    ),
    # --- how superseded keys end ---
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
        "a disabled key cannot be restored for long",
        Ledger,
        "changed",
        _disabled_is_due,
        ("rotate", "retire"),
        {**AT_ONCE, "retirement": DISABLE},
    ),
    Mutant(
        "a restored key is published before it is enabled",
        RESTORE,
        "enable",
        _enable_nothing,
        ("rotate", "restore"),
        {**AT_ONCE, "retirement": DISABLE},
    ),
    # --- the key's settings ---
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
        "a carried budget starts afresh", tasks.key.terms, "carried_over", lambda *_: None, ("rotate", "spend"), CARRIED
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
        "the full limit never comes back",
        tasks.key.budget,
        "restore_budget",
        nothing,
        ("rotate", "spend", "retire", "the_clock_jumps"),
        {**CARRIED, "key": {"carry_budget": True, "limit_reset": "daily"}},
    ),
    # --- whose turn it is ---
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
    # --- removal, plan, audit, events ---
    Mutant(
        "a rotation that is back counts as removed",
        Ledger,
        "intended",
        _still_removed,
        ("rotate", "remove", "retire"),
        SIMPLE,
    ),
    Mutant("a removed rotation's keys live on", Ledger, "given_up", _kept_all, ("rotate", "remove"), SIMPLE),
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
"""Every wrong version."""


@dataclass(frozen=True)
class Caught:
    """Whether and how a mutant was caught."""

    by: str | None
    seconds: float
    histories: int


def hunt(mutant: Mutant, histories: int = MAX_HISTORIES) -> Caught:
    """Let histories run until one of them fails.

    Args:
        mutant: The wrong version.
        histories: After how many it got away.

    Returns:
        Which promise it broke, or `None` where it got away.

    Raises:
        Exception: The simulation itself is at fault; that proves nothing about the mutant.
    """
    begun, before = time.monotonic(), COUNTED["histories"]
    by = None
    chosen = settings(
        max_examples=histories,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    machine = histories_of(*mutant.among, **mutant.begun_with)

    # Of a class Hypothesis would read and digest the whole module, which takes longer than some hunts.
    @seed(0)
    def begin() -> Histories:
        return machine()

    with mutant.planted(), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_state_machine_as_test(cast("type[Histories]", begin), settings=chosen)
        except BrokenPromiseError as broken:
            by = str(broken)
    return Caught(by, time.monotonic() - begun, COUNTED["histories"] - before)


def main() -> int:
    """Hunt every mutant, let the right version live through as many histories, and print the table.

    Returns:
        0 if all mutants were caught, and the right version never was.
    """
    table = Table("wrong version", "caught by", "histories of", "seconds", "the right version", title="Mutants")
    convincing = True
    for mutant in MUTANTS:
        caught = hunt(mutant)
        right = hunt(mutant.undone(), caught.histories)
        convincing = convincing and caught.by is not None and right.by is None
        table.add_row(
            mutant.wrong,
            (caught.by or "")[:80] or "[red]not caught[/]",
            ", ".join(mutant.among) or "all rules",
            f"{caught.seconds:.1f}",
            f"[red]{right.by}[/]" if right.by else f"kept {right.histories} histories",
        )
    Console().print(table)
    return 0 if convincing else 1


if __name__ == "__main__":
    sys.exit(main())
