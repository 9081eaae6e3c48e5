"""Histories by the thousand: a person, a scheduler and a malicious fate take turns, and the promises are watched.

The machine is Hypothesis' rule-based state machine over the model world.
A new capability joins it with a rule of its own (what may happen) and with a check of what it promises: in `watching`
where that holds after every effect, in `outcomes` where it holds after a run that succeeded.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    RULE_MARKER,
    initialize,
    precondition,
    rule,
)

from blocks.errors import PlaceLostError
from blocks.openrouter.keys import KeyRequest
from tasks.audit.findings import Finding, Kind
from tasks.audit.judge import SETTLED_AFTER
from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.keys import marker, read_marker, without_marker
from tasks.model.ledger import Ledger
from tasks.model.rotation import KeySettings, Retirement, Rotation
from tasks.steps import PLAIN, Steps
from tests.simulation import outcomes
from tests.simulation.invariants import check_agreement, check_no_older_key, check_no_orphan
from tests.simulation.model import (
    Audited,
    Ended,
    Fate,
    Process,
    play,
    run_apply,
    run_audit,
    run_plan,
    run_protocol,
    run_remove,
    run_restore,
    run_retire,
    run_write_off,
)
from tests.simulation.outcomes import Before
from tests.simulation.promises import promise
from tests.simulation.strategies import (
    BEGINNINGS,
    NOT_PAUSED_AT,
    PLACES,
    Aim,
    aims,
    amounts,
    destinations,
    fates,
    hits,
    key_settings,
    minimum_ages,
    nth,
    nth_of,
    others,
    overlaps,
    retirements,
    runs,
)
from tests.simulation.watching import COUNTED, FOREIGN, Watched

Planned = list[tuple[Aim, Fate]]
"""Which effects of a run are struck, and how."""


class Histories(Watched):
    """One rotation's life in a hostile world."""

    steps: Steps = PLAIN

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Identity] = []
        self.completed: set[UUID] = set()
        self.numbers = 0
        self.touched: set[str] = set()

    @initialize(
        names=BEGINNINGS["names"],
        overlap=BEGINNINGS["overlap"],
        retirement=BEGINNINGS["retirement"],
        key=BEGINNINGS["key"],
        minimum_age=BEGINNINGS["minimum_age"],
        adopts=BEGINNINGS["adopts"],
    )
    def begin(
        self,
        names: list[str],
        overlap: timedelta,
        retirement: Retirement,
        key: dict[str, Any],
        minimum_age: timedelta,
        adopts: bool,
    ) -> None:
        """A person fills the form in, for a new key or for one that consumers read already."""
        self.rotation = Rotation(
            name="checkout",
            connection="openrouter",
            key=KeySettings(name="checkout service", limit_usd=50, **key),
            destinations=names,
            overlap=overlap,
            retirement=retirement,
            minimum_age=minimum_age,
        )
        self.model.deployments["checkout"] = self.rotation
        if adopts:
            self.adopt_or_not(adopt=True)

    # --- runs ---

    def _fate(self, planned: Planned) -> None:
        seen: Counter[str] = Counter()

        def fate(effect: str) -> Fate:
            chosen = next((fate for aim, fate in planned if hits(aim, effect, seen)), Fate.WORKS)
            seen[effect] += 1
            COUNTED["crashes" if chosen in (Fate.KILLED_BEFORE, Fate.KILLED_AFTER) else "faults"] += (
                chosen is not Fate.WORKS
            )
            return chosen

        self.model.fate = fate

    def _identity(self, *, emergency: bool = False, scheduled: bool = False) -> Identity:
        self.numbers += 1
        self.model.time += timedelta(seconds=1)
        scheduled_for = self.model.time if scheduled else None
        identity = Identity(UUID(int=self.numbers), self.model.time, 1, emergency, scheduled_for)
        self.runs.append(identity)
        return identity

    def _other_identity(self) -> Identity:
        """Of a run that is no rotation, so that no Retry of a rotation means it."""
        self.numbers += 1
        return Identity(UUID(int=10**6 + self.numbers), self.model.time)

    def _rotate(self, identity: Identity, process: Process | None = None) -> Ended:
        ended = play(run_protocol(self.model, self.rotation, identity, process, self.steps))
        self._after(ended)
        if ended.succeeded:
            self.completed.add(identity.id)
        return ended

    def _after(self, ended: Ended) -> None:
        COUNTED["runs"] += 1
        self.model.tell(f"    {ended}")
        said = f"{ended.message} {ended.error!r}"
        promise(not any(secret in said for secret in self.made), "I3: a key is in a message")
        self.model.fate = lambda _effect: Fate.WORKS

    @rule(planned=fates, emergency=st.booleans(), scheduled=st.booleans())
    def rotate(self, planned: Planned, emergency: bool, scheduled: bool) -> None:
        """A new run, by schedule or by hand."""
        identity = self._identity(emergency=emergency, scheduled=scheduled)
        self.model.tell(f"run {self.numbers} starts{' (emergency)' * emergency}{' (scheduled)' * scheduled}")
        if emergency:
            # In an emergency a key dies at once, whatever may still bring it in.
            self.model.settle()
        before, spendable = Before.of(self.model), self._spendable()
        self._fate(planned)
        if self._rotate(identity).succeeded:
            self._check_rotated(identity, before, spendable)

    def _check_rotated(self, identity: Identity, before: Before, spendable: Decimal | None) -> None:
        check_agreement(self.model, self.rotation)
        check_no_orphan(self.model, self.rotation, self.out_of_sight)
        outcomes.check_turn(self.model, self.rotation, identity, before)
        outcomes.check_new_key(self.model, self.rotation, before)
        outcomes.check_adopted(self.model, self.rotation, before, at_once=identity.emergency)
        outcomes.check_told(self.model, before, self.rotation)
        outcomes.check_ends_told(self.model, before)
        outcomes.check_scheduled(self.model)
        if identity.emergency:
            check_no_older_key(self.model, self.rotation, self.out_of_sight)
            return
        outcomes.check_budget(self.model, before)
        former = before.ledger.current
        if former and former.hash in before.keys and self.rotation.overlap and former.hash != self._current():
            alive = former.hash in self.model.alive() or before.keys[former.hash].disabled
            promise(alive, "a superseded key died before its overlap ended")
        if self.rotation.key.carry_budget and spendable is not None:
            left = self._spendable_with_all()
            promise(left is not None and left <= spendable, f"a rotation made {spendable} USD to {left} USD")

    def _spendable_with_all(self) -> Decimal | None:
        ledger = self.model.ledger("checkout")
        alive = [self.model.keys[key] for key in (ledger.hashes() if ledger else ()) if key in self.model.alive()]
        amounts = [key.may_spend(self.model.time) for key in alive]
        return None if None in amounts else sum(filter(None, amounts), Decimal(0))

    def _spendable(self) -> Decimal | None:
        """What the consumers may still spend with the current and the superseded keys, where that is limited."""
        ledger = self.model.ledger("checkout")
        if ledger is None or ledger.current is None or ledger.current.hash not in self.model.alive():
            return None
        current = self.model.keys[ledger.current.hash]
        if current.account != self.model.connections.get(ledger.current.connection):
            # What was spent in an account that the connection has left cannot be known.
            return None
        if current.request.limit != self.rotation.key.limit_usd or ledger.pending or ledger.superseded:
            return None
        if current.request.limit_reset != self.rotation.key.terms(self.model.time).limit_reset:
            return None
        return current.may_spend(self.model.time)

    def _current(self) -> str | None:
        """The hash of the current key, where it is there and its ledger can be trusted."""
        ledger = self.model.ledger("checkout")
        return ledger.current.hash if ledger and ledger.current and ledger.current.hash in self.model.keys else None

    @precondition(lambda self: self.runs)
    @rule(planned=fates, which=nth)
    def retry(self, planned: Planned, which: int) -> None:
        """Somebody presses Retry on any run that there ever was."""
        index = which % len(self.runs)
        run = self.runs[index]
        self.model.time += timedelta(seconds=1)
        completed = run.id in self.completed
        self.runs[index] = Identity(run.id, run.first_started, run.attempt + 1, run.emergency, completed=completed)
        self.model.tell(f"run {run.id.int} is retried")
        ledger, keys = self.model.ledger("checkout"), set(self.model.keys)
        done = ledger and ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by)
        self._fate(planned)
        self._rotate(self.runs[index])
        made = set(self.model.keys) - keys
        promise(not (done or completed) or not made, "I6: a Retry of a finished run made another key")

    @rule(emergency=st.booleans(), scheduled=st.booleans())
    def plan(self, emergency: bool, scheduled: bool) -> None:
        """A person asks what a run would do, and then starts one."""
        identity = self._identity(emergency=emergency, scheduled=scheduled)
        self.model.tell(f"a plan of run {self.numbers}{' (emergency)' * emergency}{' (scheduled)' * scheduled}")
        if emergency:
            self.model.settle()
        before, world = Before.of(self.model), self._everything()
        planned = play(run_plan(self.model, self.rotation, identity))
        self._after(planned.ended)
        promise(self._everything() == world, "a plan changed something")
        if not planned.ended.succeeded or not self._rotate(identity).succeeded:
            return
        steps = " ".join(planned.steps)
        made = set(self.model.keys) - set(before.keys)
        promise(bool(made) or "Create a key" not in steps, "a plan named a key that the run did not make")
        promise(not made or "Create a key" in steps or "Finish" in steps, "a plan did not name the key that a run made")
        if emergency and before.ledger.current and made and not before.ledger.pending:
            promise("every older one at once" in steps, "a plan did not say that an emergency ends older keys")

    def _everything(self) -> str:
        model = self.model
        keys = [(key.settings(), key.uses) for key in model.keys.values()]
        return repr(
            (keys, model.variables, model.places, model.deployments, sorted(model.retirements.items()), model.events)
        )

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates, on_time=st.booleans())
    def retire(self, planned: Planned, on_time: bool) -> None:
        """A retirement, at the moment for which it was scheduled, or started by a person."""
        if on_time:
            self._wait_for_a_retirement()
        self.model.tell("a retirement starts")
        before = Before.of(self.model)
        self._fate(planned)
        self._after(ended := play(run_retire(self.model, "checkout", self._other_identity())))
        if ended.succeeded and before.ledger.current:
            outcomes.check_scheduled(self.model)
            outcomes.check_budget(self.model, before)
            outcomes.check_ends_told(self.model, before)
            due = {key.hash for key in self.last_ledger.due(self.model.time)}
            promise(not due, f"a retirement left {due}, which were due")

    def _wait_for_a_retirement(self) -> None:
        coming = sorted(at for (_, at), live in self.model.retirements.items() if live and at > self.model.time)
        if coming:
            self.model.late_effects_happen()
            self.model.time = coming[0]

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates)
    def restore(self, planned: Planned) -> None:
        """A person wants the superseded key back."""
        self.model.tell("a restore starts")
        before = Before.of(self.model)
        self._fate(planned)
        self.restoring = True
        self._after(ended := play(run_restore(self.model, "checkout", self._other_identity())))
        self.restoring = False
        ledger = self.model.ledger("checkout")
        if ended.succeeded and ledger and ledger.current:
            held = {self.model.places[name].content for name in ledger.current.destinations}
            key = self.model.keys.get(ledger.current.hash)
            promise(key is not None and held == {key.secret}, "a restored key is not what consumers read")
            promise(ledger.current.hash in {k.hash for k in before.ledger.superseded}, "a restore restored nothing")
            told = before.told_since(self.model, Event.KEY_RESTORED, ledger.current.hash)
            promise(told, "nobody was told of a restored key")
            outcomes.check_scheduled(self.model)

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates)
    def apply_settings(self, planned: Planned) -> None:
        """A person wants the settings to reach the current key at once."""
        self.model.tell("apply-settings starts")
        before = Before.of(self.model)
        self._fate(planned)
        self._after(ended := play(run_apply(self.model, "checkout", self._other_identity())))
        promise(set(self.model.keys) == set(before.keys), "apply-settings made or deleted a key")
        if ended.succeeded:
            outcomes.check_applied(self.model, self.rotation, before)

    @precondition(lambda self: self.last_ledger.superseded)
    @rule(which=nth)
    def write_off(self, which: int) -> None:
        """A person wants to be rid of a superseded key, whether or not it can be revoked."""
        key = nth_of(self.last_ledger.superseded, which)
        self.model.tell(f"write-off-key starts for {key.hash}")
        before = Before.of(self.model)
        self._after(ended := play(run_write_off(self.model, "checkout", self._other_identity(), key.hash)))
        promise(set(self.model.keys) == set(before.keys), "write-off-key made or deleted a key")
        if ended.succeeded:
            outcomes.check_written_off(self.model, before, key)
            # It is nobody's to revoke any more, unless an audit finds it.
            self.out_of_sight.add(key.hash)

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates, keys=st.sampled_from(["revoke", "keep", "keep-until"]))
    def remove(self, planned: Planned, keys: str) -> None:
        """A person takes the rotation away, and fills the form in anew."""
        self.model.tell(f"remove-rotation starts, keys: {keys}")
        # Nothing keeps a write of long ago out of a destination that no rotation has any more.
        self.model.settle()
        # Whoever removes a rotation knows that its keys die.
        self.serving.clear()
        before = Before.of(self.model)
        self._fate(planned)
        until = {"revoke": self.model.time, "keep": None, "keep-until": self.model.time + timedelta(hours=1)}[keys]
        self._after(ended := play(run_remove(self.model, "checkout", self._other_identity(), until)))
        if ended.succeeded:
            outcomes.check_removed(self.model, before, keys, until)
            outcomes.check_ends_told(self.model, before)
            outcomes.check_scheduled(self.model)
        self._fill_the_form_in_anew()

    def _fill_the_form_in_anew(self) -> None:
        self.model.deployments["checkout"] = self.rotation
        self._let_go_of_kept_keys()

    def _let_go_of_kept_keys(self) -> None:
        # What the form still names to be adopted is the rotation's to revoke, once a run has taken it up.
        explained = self.last_ledger.hashes() | {self.rotation.adopt}
        for key in self.model.keys.values():
            if read_marker(key.request.name) is None and key.hash not in explained:
                self.foreign.setdefault(key.hash, key.settings())
                self.made.pop(key.secret, None)
                self._stop_promising(key.secret)

    def _stop_promising(self, secret: str) -> None:
        """What a person has done to a key is not the rotation's to answer for, where it is read."""
        self.serving -= {name for name, place in self.model.places.items() if place.content == secret}

    @rule(planned=st.just([]) | fates, connection=st.sampled_from(["openrouter", "other"]), repair=st.booleans())
    def audit(self, planned: Planned, connection: str, repair: bool) -> None:
        """A daily audit, or one that repairs."""
        self.model.tell(f"an audit of {connection} starts{' with repair' if repair else ''}")
        protected, ledgers = self._out_of_reach(), json.dumps(self.model.ledgers())
        before = Before.of(self.model)
        everything = {key.hash: key.settings() for key in self.model.keys.values()}
        self._fate(planned)
        audited = self._audit(connection, repair=repair)
        may_look = not planned and connection not in self.model.deleted_connections
        may_look = may_look and self.model.connections[connection] not in self.model.revoked_accounts
        if audited.report and may_look and not repair:
            outcomes.check_findings(self.model, connection, audited.report.findings, before.told)
        after = {key.hash: key.settings() for key in self.model.keys.values()}
        held = {name: place.content for name, place in self.model.places.items()}
        promise(before.held == held, "an audit wrote a destination")
        promise(repair or after == everything, "an audit without repair changed a key")
        promise(repair or json.dumps(self.model.ledgers()) == ledgers, "an audit without repair wrote a ledger")
        promise(protected.items() <= after.items(), "a repair changed a key that it must not touch")
        restored = ledgers == "{}" and self._current() is not None
        promise(restored or self._says_the_same(ledgers), "a repair changed a ledger")
        if restored:
            COUNTED["restored ledgers"] += 1
            check_agreement(self.model, self.rotation)

    def _says_the_same(self, ledgers: str) -> bool:
        # A repair takes the ledger over, so that nobody else writes meanwhile: only its signature changes.
        signature = dict.fromkeys(("revision", "writer", "package"))
        before = {name: {**value, **signature} for name, value in json.loads(ledgers).items()}
        return {name: {**value, **signature} for name, value in self.model.ledgers().items()} == before

    @precondition(lambda self: self._is_simple())
    @rule(planned=fates)
    def audit_after_the_ledger_was_lost(self, planned: Planned) -> None:
        """A person deletes the ledger of a rotation with one key, and lets an audit repair it."""
        current, certain = self._current(), not planned and self._is_beyond_doubt()
        self.delete_the_ledger()
        self.model.time += timedelta(hours=2)
        self.audit(planned, self.rotation.connection, repair=True)
        promise(not certain or self._current() == current, "an audit did not write a lost ledger anew")

    def _is_simple(self) -> bool:
        ledger = self.model.ledger("checkout")
        return ledger is not None and ledger.current is not None and not (ledger.superseded or ledger.pending)

    def _is_beyond_doubt(self) -> bool:
        """Whether a lost ledger can be written anew: the one key of the rotation works wherever it should be."""
        key = self.model.keys.get(self._current() or "")
        account = self.model.connections[self.rotation.connection]
        reachable = self.rotation.connection not in self.model.deleted_connections
        reachable = reachable and account not in self.model.revoked_accounts
        if key is None or key.account != account or not reachable or self.model.late:
            return False
        places = [self.model.places[name] for name in self.rotation.destinations]
        marks = [read_marker(k.request.name) for k in self.model.keys.values() if k.account == account]
        known = [mark for mark in marks if mark and mark[0] == "checkout" and mark[1] in self.model.runs]
        readable = all(place.exists and place.content == key.secret for place in places)
        lasts = not key.expired(self.model.time + timedelta(hours=3)) and not key.disabled
        # After a clock was set back, it is younger than an audit must take it to be before it decides.
        settled = self.model.time + timedelta(hours=2) - key.created_at > SETTLED_AFTER
        return readable and lasts and settled and len(known) == 1 and known[0] == read_marker(key.request.name)

    def _out_of_reach(self) -> dict[str, Any]:
        """The keys that no repair may change: explained, held, foreign, young, or in use."""
        ledger = self.model.ledger("checkout")
        explained = ledger.hashes() if ledger else set()
        places = {*self.rotation.destinations, *(ledger.current.destinations if ledger and ledger.current else ())}
        held = {self.model.places[name].content for name in places}
        return {
            key.hash: key.settings()
            for key in self.model.keys.values()
            if key.hash in explained
            or key.hash in self.foreign
            or key.secret in held
            or self.model.time - key.created_at <= SETTLED_AFTER
            or (key.uses and self.model.works(key.secret))
        }

    def _audit(self, connection: str, *, repair: bool) -> Audited:
        audited = play(run_audit(self.model, connection, self._other_identity(), repair=repair))
        self._after(audited.ended)
        findings = audited.report.findings if audited.report else ()
        COUNTED["findings"] += len(findings)
        COUNTED["repairs"] += sum(finding.repaired for finding in findings)
        return audited

    # --- two at once ---

    @rule(pause_at=aims, kind=runs, other=others, planned=fates)
    def paused(self, pause_at: Aim, kind: str, other: str, planned: Planned) -> None:
        """A run is stopped in its tracks, loses its slot to another one, and goes on after that one has ended."""
        first = self._identity(emergency=kind == "emergency")
        self.model.tell(f"{kind} (run {first.id.int}) will be paused while there comes: {other}")
        if "remove" in (kind, other):
            self.model.late_effects_happen()
            self.serving.clear()
            self.taken_away = True
        self.restoring = True
        for ended in play(self._interleaved(kind, first, other, pause_at, planned)):
            self._after(ended)
        self.restoring = self.taken_away = False
        self._fill_the_form_in_anew()

    @rule(looks=st.integers(0, 3), other=st.sampled_from(["rotate", "emergency", "restore"]))
    def overtaken(self, looks: int, other: str) -> None:
        """A rotation is overtaken right before it looks at a destination once more."""
        self.paused(pause_at=("read vault-secret", looks), kind="rotate", other=other, planned=[])

    def _begin(self, kind: str, identity: Identity, process: Process) -> Coroutine[Any, Any, Ended]:
        simple = {"retire": run_retire, "restore": run_restore, "apply": run_apply}
        match kind:
            case "retire" | "restore" | "apply":
                return simple[kind](self.model, "checkout", identity, process)
            case "remove":
                return run_remove(self.model, "checkout", identity, self.model.time, process)
            case "audit":
                return self._audit_to_its_end(identity, process)
            case "person":
                return self._edit_other_fields()
            case _:
                return run_protocol(self.model, self.rotation, identity, process, self.steps)

    async def _audit_to_its_end(self, identity: Identity, process: Process) -> Ended:
        return (await run_audit(self.model, "openrouter", identity, repair=True, process=process)).ended

    async def _edit_other_fields(self) -> Ended:
        for name in self.rotation.destinations:
            self._edit_another_field(name)
        return Ended(message="a person edited other fields")

    async def _interleaved(
        self, kind: str, first: Identity, other: str, pause_at: Aim, planned: Planned
    ) -> list[Ended]:
        process, paused, go_on = Process(self.model, "paused run"), asyncio.Event(), asyncio.Event()
        seen: Counter[str] = Counter()
        reached = False

        async def gate(effect: str) -> None:
            nonlocal reached
            reached = reached or hits(pause_at, effect, seen)
            seen[effect] += 1
            if reached and not go_on.is_set() and not (other == "emergency" and effect.startswith(NOT_PAUSED_AT)):
                self.model.tell(f"    paused before: {effect}")
                COUNTED["pauses"] += 1
                paused.set()
                await go_on.wait()

        process.gate = gate
        late = asyncio.ensure_future(self._begin(kind, first, process))
        await asyncio.wait([late, asyncio.ensure_future(paused.wait())], return_when=asyncio.FIRST_COMPLETED)
        try:
            quick = await self._meanwhile(first, other, planned)
            has_lost, begun = process.seen_signatures not in (None, self.model.signatures), len(process.begun_changes)
            go_on.set()
            ended = await late
        finally:
            late.cancel()
        stopped = isinstance(ended.error, PlaceLostError) or len(process.begun_changes) == begun
        promise(not has_lost or stopped, f"I5: a run that lost its place went on: {process.begun_changes[begun:]}")
        return [quick, ended]

    async def _meanwhile(self, first: Identity, other: str, planned: Planned) -> Ended:
        if other == "emergency":
            self.model.settle()
        self._fate(planned)
        again = replace(first, attempt=2)
        second = again if other == "retry" else self._identity(emergency=other == "emergency")
        ended = await self._begin(other, second, Process(self.model, "second run"))
        self.model.fate = lambda _effect: Fate.WORKS
        return ended

    # --- what consumers do ---

    @precondition(lambda self: self.model.keys)
    @rule(amount=amounts, which=nth)
    def spend(self, amount: Decimal, which: int) -> None:
        """A consumer uses a key that it has read at some time."""
        usable = [k for k in self.model.keys.values() if k.hash not in self.foreign and self.model.works(k.secret)]
        if not usable:
            return
        key = nth_of(usable, which)
        left = key.may_spend(self.model.time)
        spent = amount if left is None else min(amount, left)
        self.model.tell(f"a consumer spends {spent} USD with {key.hash}")
        key.uses.append((self.model.time, spent))

    @precondition(lambda self: self.last_ledger.superseded and self.last_ledger.superseded[0].since)
    @rule()
    def go_on_using_a_former_key(self) -> None:
        """A consumer uses a superseded key until its longest overlap ends, and a retirement comes."""
        former = self.last_ledger.superseded[0]
        key, since = self.model.keys.get(former.hash), former.since or self.model.time
        last_call = max(since + self.last_ledger.retirement.max_overlap, former.overlap_ends or since)
        if key is None or last_call < self.model.time:
            return
        self.model.late_effects_happen()
        self.model.time = last_call
        self.model.tell(f"a consumer uses {key.hash} until {last_call}")
        if key.works(self.model.time):
            key.uses.append((self.model.time - timedelta(minutes=1), Decimal(0)))
        self.retire(planned=[], on_time=False)

    # --- what people do by hand ---

    @rule(name=st.sampled_from(sorted(PLACES)), which=nth)
    def edit_a_destination(self, name: str, which: int) -> None:
        """A person writes something else into a destination: anything, or a key that was there before."""
        self._put_by_hand(name, nth_of([FOREIGN, *filter(None, self.versions[name])], which))

    @rule(name=st.sampled_from(sorted(name for name, versioned in PLACES.items() if versioned)))
    def edit_another_field(self, name: str) -> None:
        """A person changes what stands beside the key."""
        self.model.tell(f"by hand: another field of {name} is changed")
        self._edit_another_field(name)

    def _edit_another_field(self, name: str) -> None:
        place = self.model.places[name]
        if place.checks_and_sets:
            self.fields[name] = {"username": f"somebody {self.model.fresh()}"}
            place.put(place.content, self.fields[name])
            self.versions[name].append(place.content)

    @precondition(lambda self: self._former_keys())
    @rule(where=nth, which=nth)
    def put_a_former_key_back(self, where: int, which: int) -> None:
        """A person lets consumers read a superseded key again."""
        self._put_by_hand(nth_of(sorted(self.rotation.destinations), where), nth_of(self._former_keys(), which))

    def _put_by_hand(self, name: str, content: str) -> None:
        self.model.tell(f"by hand: {name} is set to {content}")
        self.model.places[name].versions.append(content)
        self.versions[name].append(content)
        self._promise_what_works(name)

    def _promise_what_works(self, name: str) -> None:
        # Who puts in a dead key, or a key of a rotation that was taken away, knows that it does not work for ever.
        content = self.model.places[name].content
        works = content in self.made and self.model.works(content) and not self.last_ledger.removed
        works = works and (self.model.places[name].exists or self.made[content or ""] == self._current())
        (self.serving.add if works and self._is_explained(content) else self.serving.discard)(name)

    def _is_explained(self, secret: str | None) -> bool:
        return self.made.get(secret or "") in self.last_ledger.hashes()

    def _former_keys(self) -> list[str]:
        former = [self.model.keys.get(key.hash) for key in self.last_ledger.superseded]
        return [key.secret for key in former if key and self.model.works(key.secret)]

    def _ours(self) -> list[str]:
        return sorted(set(self.model.keys) - set(self.foreign))

    @precondition(lambda self: self._ours())
    @rule(which=nth)
    def delete_a_key(self, which: int) -> None:
        """A person deletes one of the rotation's keys at OpenRouter."""
        # A write of this key that is still under way would put a key into a destination that a person has just killed.
        self.model.settle()
        chosen = self.model.keys.pop(nth_of(self._ours(), which))
        self.touched.add(chosen.hash)
        self.disabled.pop(chosen.hash, None)
        self.model.tell(f"by hand: {chosen.hash} is deleted")
        self._stop_promising(chosen.secret)

    @precondition(lambda self: self._ours())
    @rule(which=nth)
    def disable_a_key(self, which: int) -> None:
        """A person disables one of the rotation's keys at OpenRouter."""
        self.model.settle()
        chosen = self.model.keys[nth_of(self._ours(), which)]
        chosen.disabled = True
        self.touched.add(chosen.hash)
        self.model.tell(f"by hand: {chosen.hash} is disabled")
        self._stop_promising(chosen.secret)

    @precondition(lambda self: self._ours())
    @rule(which=nth, limit=st.sampled_from([None, Decimal(1), Decimal(500)]))
    def limit_a_key(self, which: int, limit: Decimal | None) -> None:
        """A person gives one of the rotation's keys another limit at OpenRouter."""
        chosen = self.model.keys[nth_of(self._ours(), which)]
        chosen.request = chosen.request.model_copy(update={"limit": limit})
        self.touched.add(chosen.hash)
        self.model.tell(f"by hand: {chosen.hash} gets the limit {limit}")

    @precondition(lambda self: self._ours())
    @rule(which=nth, keeps_marker=st.booleans())
    def rename_a_key(self, which: int, keeps_marker: bool) -> None:
        """A person renames one of the rotation's keys; without its marker only the ledger knows whose it is."""
        chosen = self.model.keys[nth_of(self._ours(), which)]
        name = chosen.request.name
        new = f"renamed {name}" if keeps_marker else without_marker(name)
        chosen.request = chosen.request.model_copy(update={"name": new})
        self.model.tell(f"by hand: {chosen.hash} is renamed {new}")
        self._let_go_of_kept_keys()

    @rule()
    def delete_the_ledger(self) -> None:
        """A person deletes the ledger's variable."""
        self.model.tell("by hand: the ledger is deleted")
        self.model.settle()
        self.model.variables.clear()
        self._begin_to_watch(Ledger())
        self._lose_sight()
        self._let_go_of_kept_keys()

    @precondition(lambda self: self._settled_ledgers())
    @rule(which=nth)
    def put_an_old_ledger_back(self, which: int) -> None:
        """A person puts back a value that the ledger's variable had before."""
        self.model.settle()
        value = nth_of(self._settled_ledgers(), which)
        self.model.put_ledger("checkout", value)
        self._begin_to_watch(Ledger.model_validate(value))
        self.model.tell(f"by hand: the ledger is what it was at revision {self.last_ledger.revision}")
        explained = self.last_ledger.hashes()
        # A marker names its run only: whoever goes back to before a create does not retry that run.
        self.runs.clear()
        # What was made since then only an audit can find; what was let go since then is the rotation's again.
        self.out_of_sight |= set(self.model.keys) - explained
        self.foreign = {key: settings for key, settings in self.foreign.items() if key not in explained}
        self._let_go_of_kept_keys()

    def _begin_to_watch(self, ledger: Ledger) -> None:
        """What a ledger has forgotten, no run can keep to."""
        self.last_ledger = ledger
        self.disabled.clear()
        self.announced.clear()

    def _settled_ledgers(self) -> list[dict[str, Any]]:
        """The earlier values in which no create is open."""
        return [value for value in self.ledgers if not value.get("pending") and not value.get("unresolved")]

    def _lose_sight(self) -> None:
        # Without a ledger nothing can know of keys in an account that the rotation does not use; an audit of it does.
        if self.model.ledger("checkout") is None:
            used = self.model.connections[self.rotation.connection]
            self.out_of_sight |= {key.hash for key in self.model.keys.values() if key.account != used}

    @rule(names=destinations, overlap=overlaps, limit=st.sampled_from([50, 75]))
    def change_the_rotation(self, names: list[str], overlap: timedelta, limit: int) -> None:
        """A person changes destinations, overlap and limit."""
        self.model.tell(f"by hand: the rotation now goes to {names}, overlap {overlap}, limit {limit}")
        # Nobody has promised anything for what a new destination holds, until a run has published to it.
        self.serving -= set(names) - set(self.rotation.destinations)
        key = self.rotation.key.model_copy(update={"limit_usd": Decimal(limit)})
        self._change(destinations=names, overlap=overlap, key=key)

    def _change(self, **changes: Any) -> None:
        self.rotation = self.rotation.model_copy(update=changes)
        self.model.deployments["checkout"] = self.rotation

    @rule(names=destinations)
    def permit_to_overwrite(self, names: list[str]) -> None:
        """A person names the destinations whose values may be lost, and no others."""
        self.model.tell(f"by hand: the rotation may overwrite {names}")
        self._change(overwrite=names)

    @rule(retirement=retirements, minimum_age=minimum_ages)
    def change_the_policies(self, retirement: Retirement, minimum_age: timedelta) -> None:
        """A person changes how superseded keys end."""
        self.model.tell(f"by hand: the retirement is now {retirement!r}, the minimum age {minimum_age}")
        self._change(retirement=retirement, minimum_age=minimum_age)

    @rule(changes=key_settings)
    def change_the_key(self, changes: dict[str, Any]) -> None:
        """A person changes what every new key gets."""
        self.model.tell(f"by hand: the key's settings are now {changes}")
        self._change(key=self.rotation.key.model_copy(update=changes))

    @rule(tells=st.booleans())
    def openrouter_tells_the_last_use(self, tells: bool) -> None:
        """Keys made from now on show when they were used last, or do not."""
        self.model.tells_last_use = tells

    @rule(longest=st.sampled_from([None, len(marker("checkout", UUID(int=0))) + 5]))
    def openrouter_cuts_names(self, longest: int | None) -> None:
        """OpenRouter stores less of a key's name than it is given, or all of it."""
        self.model.tell(f"OpenRouter keeps {longest or 'all'} characters of a name")
        self.model.longest_name = longest

    @rule(adopt=st.booleans())
    def adopt_or_not(self, adopt: bool) -> None:
        """A person names a key to adopt, which counts only while the rotation has none."""
        hash_ = None
        if adopt and self.rotation.adopt is None:
            account = self.model.connections[self.rotation.connection]
            key = self.model.add_key(f"adopted-{self.model.fresh()}", KeyRequest(name="made by a person"), account)
            hash_ = key.hash
            place = self.model.places[self.rotation.destinations[0]]
            if place.content is None:
                self._put_by_hand(self.rotation.destinations[0], key.secret)
        self.model.tell(f"by hand: the rotation adopts {hash_}")
        self._change(adopt=hash_)

    @rule(connection=st.sampled_from(["openrouter", "other"]))
    def change_the_connection(self, connection: str) -> None:
        """A person lets the rotation use another account."""
        self.model.tell(f"by hand: the rotation now uses the connection {connection}")
        self._change(connection=connection)
        self._lose_sight()

    @precondition(lambda self: self._nothing_is_open())
    @rule(account=st.sampled_from(["account-1", "account-2"]))
    def exchange_the_management_key(self, account: str) -> None:
        """A person puts the management key of another account into the same connection."""
        self.model.tell(f"by hand: the connection openrouter now belongs to {account}")
        self.model.connections["openrouter"] = account
        self._lose_sight()

    def _nothing_is_open(self) -> bool:
        # A create whose outcome is unknown can be settled only in the account in which it was made.
        ledger = self.model.ledger("checkout")
        return not self.model.late and (ledger is None or not (ledger.pending or ledger.unresolved))

    @rule(account=st.sampled_from(["account-1", "account-2"]), revoked=st.booleans())
    def revoke_the_management_key(self, account: str, revoked: bool) -> None:
        """A management key dies, or is made anew."""
        self.model.tell(f"the management key of {account} {'is revoked' if revoked else 'works'}")
        (self.model.revoked_accounts.add if revoked else self.model.revoked_accounts.discard)(account)

    @rule(name=st.sampled_from(sorted(PLACES)), exists=st.booleans())
    def remove_a_block(self, name: str, exists: bool) -> None:
        """A destination's block is deleted, or made anew."""
        self.model.tell(f"by hand: the block {name} {'exists' if exists else 'is deleted'}")
        self.model.places[name].exists = exists
        # Where nobody can look, only what was published last is known to be read.
        if not exists and self.made.get(self.model.places[name].content or "") != self._current():
            self.serving.discard(name)

    @rule(name=st.sampled_from(["openrouter", "other"]), exists=st.booleans())
    def delete_a_connection(self, name: str, exists: bool) -> None:
        """A connection's block is deleted, or made anew."""
        self.model.tell(f"by hand: the connection {name} {'exists' if exists else 'is deleted'}")
        (self.model.deleted_connections.discard if exists else self.model.deleted_connections.add)(name)

    # --- what the world does ---

    @rule(hours=st.sampled_from([-48, -1, 0, 1, 25, 24 * 8]))
    def the_clock_jumps(self, hours: int) -> None:
        """Time passes, or a clock is set back."""
        self.model.tell(f"the clock moves by {hours} hours")
        self.model.late_effects_happen()
        self.model.time += timedelta(hours=hours)
        for key in self.model.keys.values():
            key.valid_from = min(key.valid_from, self.model.time)

    @rule(seconds=st.sampled_from([0, 5]))
    def new_keys_are_late(self, seconds: int) -> None:
        """New keys take some seconds to be accepted."""
        self.model.tell(f"new keys are accepted after {seconds} seconds")
        self.model.validity_lag = timedelta(seconds=seconds)

    @rule()
    def late_effects_happen(self) -> None:
        """What was sent long ago takes effect now."""
        self.model.late_effects_happen()

    # --- quiet ---

    @rule()
    def quiet(self) -> None:
        """Everything works again; one run by each owner of keys, and the invariants of convergence hold."""
        self.model.tell("quiet")
        begun = len(self.model.story)
        self.model.late_effects_happen()
        self.model.revoked_accounts.clear()
        self.model.deleted_connections.clear()
        self.model.longest_name = None
        for place in self.model.places.values():
            place.exists = True
        # The person on call decides about what is still used, about a key to adopt that is gone, about settings that
        # nobody knows any more after a ledger was lost, and about values that are no keys.
        key = self.rotation.key.model_copy(update={"inherit": False})
        self._change(
            retirement=Retirement(), minimum_age=timedelta(0), adopt=None, key=key, overwrite=self.rotation.destinations
        )
        self._clean_up_every_account()
        ended = self._rotate(self._identity())
        promise(ended.succeeded, f"I6: the run after quiet failed: {ended.error}")
        check_no_orphan(self.model, self.rotation, self.out_of_sight)
        check_agreement(self.model, self.rotation)
        self._check_that_an_audit_is_content()
        self.model.story[begun:] = ["    all went well"]

    def _check_that_an_audit_is_content(self) -> None:
        """An audit finds every orphan, a repair removes them, a person decides about those in use; nothing is left."""
        for connection in ("openrouter", "other"):
            told = len(self.model.events)
            outcomes.check_findings(self.model, connection, self._findings(connection, repair=False), told)
            for finding in self._findings(connection, repair=True):
                promise(finding.kind is not Kind.LEDGER_LOST, "a ledger is lost after a successful run")
                if finding.kind is Kind.ORPHAN and finding.needs_person:
                    used = self.model.keys[finding.key_hash].uses
                    promise(bool(used), f"an orphan that nobody uses was not repaired: {finding.sentence}")
                    del self.model.keys[finding.key_hash]
            # Who has deleted or disabled a key by hand knows why, while the ledger still waits for its end.
            again = [f for f in self._findings(connection, repair=False) if f.key_hash not in self.touched]
            left = [finding.sentence for finding in again if finding.needs_person]
            promise(not left, f"after quiet an audit of {connection} needs a person: {left}")

    def _findings(self, connection: str, *, repair: bool) -> list[Finding]:
        report = self._audit(connection, repair=repair).report
        return list(report.findings) if report else []

    def _clean_up_every_account(self) -> None:
        # Keys of an account can be revoked only while the connection holds that account's management key: the person on
        # call does what the error says, puts each one back in turn, and lets what is overdue be revoked.
        self._rotate(self._identity())
        self.model.connections["openrouter"] = "account-1"
        self._lose_sight()
        self._rotate(self._identity())
        # What the first round only disables, the second one deletes.
        for _ in range(2):
            ledger = self.model.ledger("checkout")
            ends = [key.revoke_at for key in ledger.superseded] if ledger else []
            self.model.time = max([self.model.time + timedelta(days=8), *ends])
            for account in ("account-2", "account-1"):
                self.model.connections["openrouter"] = account
                if ends:
                    # A ledger that is full takes no new key, and so learns of a new policy only in this way.
                    self._after(play(run_apply(self.model, "checkout", self._other_identity())))
                self._after(play(run_retire(self.model, "checkout", self._other_identity())))

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        """Count the steps: an invariant would do so too, and be printed as a step of its own each time."""
        COUNTED["steps"] += 1
        super().check_invariants(*args, **kwargs)

    def teardown(self) -> None:
        """End in quiet, and tell the story, so that a failing history can be followed."""
        has_failed = sys.exc_info()[0] is not None
        try:
            if not has_failed and hasattr(self, "rotation"):
                self.quiet()
        finally:
            # A history that was pasted as a test has no place for notes; there the broken promise must do.
            if currently_in_test_context():
                note("\n".join(self.model.story))


def histories_of(*rules: str, **begun_with: Any) -> type[Histories]:
    """Make a machine that takes only some of the steps, and so finds sooner what comes of their order.

    Args:
        rules: The names of the rules; all where there is none. Quiet comes at the end of every history in any case.
        begun_with: What a person has filled in, where it is not left to chance.

    Returns:
        The machine.
    """
    marked = {name: getattr(getattr(Histories, name), RULE_MARKER, None) for name in dir(Histories)}
    known = {name: rule.function for name, rule in marked.items() if rule is not None}
    if unknown := (set(rules) - set(known)) | (set(begun_with) - set(BEGINNINGS)):
        raise ValueError(f"there is no {unknown}")
    taken = set(rules or known)
    # One rule may call another, even one that is left out.
    left_out = {name: function for name, function in known.items() if name not in taken}
    chosen: dict[str, Any] = BEGINNINGS | {name: st.just(value) for name, value in begun_with.items()}
    decorate: Callable[[Callable[..., None]], object] = initialize(**chosen)
    begin = decorate(getattr(Histories.begin, INITIALIZE_RULE_MARKER).function)
    return type("Histories", (Histories,), {**left_out, "begin": begin})
