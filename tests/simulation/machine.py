"""Histories by the thousand: a person, a scheduler and a malicious fate take turns, and the invariants are watched.

The machine is Hypothesis' rule-based state machine over the model world.
A new capability joins it with a rule of its own (what may happen) and, where it promises something new, with a
check that is called after every effect.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from blocks.openrouter import KeyRequest
from flows.steps import PLAIN, Steps
from tasks.audit import SETTLED_AFTER, AuditFinding, Kind
from tasks.decisions import Identity
from tasks.ledger import Ledger, ledger_variable
from tasks.rotation import KeySettings, Retirement, Rotation, read_marker
from tasks.states import TRANSITIONS, steps_between
from tests.simulation.invariants import check_agreement, check_no_older_key, check_no_orphan
from tests.simulation.model import (
    Ended,
    Fate,
    Model,
    ModelKey,
    Place,
    Process,
    play,
    run_apply,
    run_audit,
    run_protocol,
    run_remove,
    run_restore,
    run_retire,
)
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
    nth,
    overlaps,
    retirements,
)

T = TypeVar("T")

COUNTED: Counter[str] = Counter()
"""What the histories of this process did, for the summary."""


def nth_of(things: Sequence[T], which: int) -> T:
    """Choose one of several."""
    return things[which % len(things)]


class Histories(RuleBasedStateMachine):
    """One rotation's life in a hostile world."""

    steps: Steps = PLAIN

    def __init__(self) -> None:
        super().__init__()
        COUNTED["histories"] += 1
        self.model = Model()
        self.model.connections = {"openrouter": "account-1", "other": "account-2"}
        self.model.places = {name: Place(checks_and_sets=cas) for name, cas in PLACES.items()}
        self.model.watch = self.watch
        self.made: dict[str, str] = {}
        self.by_hand: dict[str, str | None] = {}
        self.versions: dict[str, list[str | None]] = {name: [] for name in PLACES}
        self.runs: list[Identity] = []
        self.foreign = self._foreign_keys()
        self.numbers = 0
        self.last_ledger = Ledger()
        self.last_alive: dict[str, list[Any]] = {}
        self.restoring = False
        self.deleted: set[str] = set()
        self.out_of_sight: set[str] = set(self.foreign)

    def _foreign_keys(self) -> dict[str, Any]:
        # One of another Prefect server with a rotation of the same name, one of another rotation.
        for number, (account, rotation) in enumerate((("account-1", "checkout"), ("account-2", "other"))):
            name = f"not ours [rotation {rotation} run 00000000-0000-4000-8000-00000000000{number}]"
            key = ModelKey(
                f"foreign-{number}",
                f"sk-or-v1-foreign-{number}",
                KeyRequest(name=name),
                account,
                f"default-of-{account}",
                self.model.time,
                self.model.time,
            )
            self.model.keys[key.hash] = key
        return {key.hash: key.settings() for key in self.model.keys.values()}

    @initialize(**BEGINNINGS)
    def begin(self, names: list[str], overlap: timedelta, retirement: Retirement, carry: bool) -> None:
        """A person fills the form in."""
        self.rotation = Rotation(
            name="checkout",
            connection="openrouter",
            key=KeySettings(name="checkout service", limit_usd=50, carry_budget=carry),
            destinations=names,
            overlap=overlap,
            retirement=retirement,
        )
        self.model.deployments["checkout"] = self.rotation

    # --- what is watched after every effect ---

    def watch(self, effect: str) -> None:
        """Check I1, I3, I4 and I7."""
        COUNTED["effects"] += 1
        for key in self.model.keys.values():
            self.made.setdefault(key.secret, key.hash)
        self._watch_destinations(effect)
        stored = json.dumps([self.model.variables, self.model.events[-1:]])
        promise(not any(secret in stored for secret in self.made), f"I3: a key was stored or told by: {effect}")
        self._watch_retirement(effect)
        self._watch_ledger(effect)
        untouched = {h: self.model.keys[h].settings() for h in self.foreign if h in self.model.keys}
        promise(untouched == self.foreign, f"I4: a foreign key was changed by: {effect}")

    def _watch_retirement(self, effect: str) -> None:
        """A superseded key ends as its rotation's policy asks, unless an emergency or a removal is in a hurry."""
        ended = {key: uses for key, uses in self.last_alive.items() if key not in self.model.alive()}
        self.last_alive = {key: list(found.uses) for key, found in self.model.alive().items()}
        policy = self.last_ledger.retirement
        for key in self.last_ledger.superseded:
            if key.hash not in ended or key.at_once or self.last_ledger.removed or not effect.endswith("OpenRouter"):
                continue
            if policy.revoke == "disable-then-delete":
                promise(key.hash in self.model.keys, f"a key that could be restored was gone after: {effect}")
            overlap_ended, now = key.overlap_ends or key.revoke_at, self.model.time
            used = max([overlap_ended, *(at for at, _ in ended[key.hash])])
            waited = now >= (key.since or overlap_ended) + policy.max_overlap
            if policy.retire_when == "unused" and not waited:
                promise(now - used >= policy.quiet_time, f"a key was revoked although it is used: {effect}")

    def _watch_ledger(self, effect: str) -> None:
        value = self.model.variables.get(ledger_variable("checkout"))
        now = Ledger.model_validate(value) if value else Ledger()
        if "ledger" in effect:
            strange = steps_between(self.last_ledger, now) - set(TRANSITIONS)
            promise(not strange, f"a key went from one state to another that it may not: {strange}")
        self.last_ledger = now

    def _watch_destinations(self, effect: str) -> None:
        for name, place in self.model.places.items():
            promise(place.versions[: len(self.versions[name])] == self.versions[name], f"I7: {name} lost a version")
            promise(place.other_fields == {"username": "someone"}, f"I7: {name} lost a field")
            if len(place.versions) > len(self.versions[name]) and place.content != self.by_hand.get(name):
                self.by_hand.pop(name, None)
            self.versions[name] = list(place.versions)
            if name in self.rotation.destinations and name not in self.by_hand and place.content in self.made:
                promise(self._alive(place.content), f"I1: {name} holds a dead key after: {effect}")
                if effect == f"write {name}" and self.rotation.key.guardrail_id and not self.restoring:
                    guarded = self._key(place.content).guardrail == self.rotation.key.guardrail_id
                    promise(guarded, f"{name} was given a key without its guardrail")

    def _key(self, secret: str) -> ModelKey:
        return next(key for key in self.model.keys.values() if key.secret == secret)

    def _alive(self, secret: str) -> bool:
        # A key that has come to its own end was let die: nobody has rotated in time.
        expired = any(key.secret == secret and key.expired(self.model.time) for key in self.model.keys.values())
        return expired or self.model.works(secret)

    def _check_said(self, ended: Ended) -> None:
        said = f"{ended.message} {ended.error!r}"
        promise(not any(secret in said for secret in self.made), "I3: a key is in a message")

    # --- runs ---

    def _fate(self, planned: list[tuple[Aim, Fate]]) -> None:
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

    def _rotate(self, identity: Identity, process: Process | None = None) -> Ended:
        ended = play(run_protocol(self.model, self.rotation, identity, process, self.steps))
        self._after(ended)
        return ended

    def _after(self, ended: Ended) -> None:
        COUNTED["runs"] += 1
        self.model.tell(f"    {ended}")
        self._check_said(ended)
        self.model.fate = lambda _effect: Fate.WORKS

    @rule(planned=fates, emergency=st.booleans(), scheduled=st.booleans())
    def rotate(self, planned: list[tuple[Aim, Fate]], emergency: bool, scheduled: bool) -> None:
        """A new run, by schedule or by hand."""
        identity = self._identity(emergency=emergency, scheduled=scheduled)
        self.model.tell(f"run {self.numbers} starts{' (emergency)' if emergency else ''}")
        before, spendable = self._current(), self._spendable()
        self._fate(planned)
        ended = self._rotate(identity)
        if ended.succeeded:
            check_agreement(self.model, self.rotation)
        if ended.succeeded and emergency:
            check_no_older_key(self.model, self.rotation, self.out_of_sight)
        if ended.succeeded and not emergency and before and self.rotation.overlap and self._current() != before:
            promise(before in self.model.alive(), "a superseded key died before its overlap ended")
        if ended.succeeded and not emergency and self.rotation.key.carry_budget and spendable is not None:
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
        """The hash of the current key, where it is alive and its ledger can be trusted."""
        ledger = self.model.ledger("checkout")
        return ledger.current.hash if ledger and ledger.current and ledger.current.hash in self.model.keys else None

    @precondition(lambda self: self.runs)
    @rule(planned=fates, which=nth)
    def retry(self, planned: list[tuple[Aim, Fate]], which: int) -> None:
        """Somebody presses Retry on any run that there ever was."""
        index = which % len(self.runs)
        run = self.runs[index]
        self.runs[index] = Identity(run.id, run.first_started, run.attempt + 1, run.emergency)
        self.model.tell(f"run {run.id.int} is retried")
        ledger, keys = self.model.ledger("checkout"), set(self.model.keys)
        done = ledger and ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by)
        self._fate(planned)
        self._rotate(self.runs[index])
        promise(not done or set(self.model.keys) <= keys, "I6: a Retry of a finished run made another key")

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates, on_time=st.booleans())
    def retire(self, planned: list[tuple[Aim, Fate]], on_time: bool) -> None:
        """A retirement, at the moment for which it was scheduled, or started by a person."""
        if on_time:
            self._wait_for_a_retirement()
        self.model.tell("a retirement starts")
        self._fate(planned)
        identity = Identity(UUID(int=10**6 + self.numbers), self.model.time)
        self._after(play(run_retire(self.model, "checkout", identity)))

    def _wait_for_a_retirement(self) -> None:
        coming = sorted(at for (_, at), live in self.model.retirements.items() if live and at > self.model.time)
        if coming:
            self.model.late_effects_happen()
            self.model.time = coming[0]

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates)
    def restore(self, planned: list[tuple[Aim, Fate]]) -> None:
        """A person wants the superseded key back."""
        self.model.tell("a restore starts")
        self._fate(planned)
        self.numbers += 1
        self.restoring = True
        ended = play(run_restore(self.model, "checkout", Identity(UUID(int=2 * 10**6 + self.numbers), self.model.time)))
        self.restoring = False
        self._after(ended)
        ledger = self.model.ledger("checkout")
        if ended.succeeded and ledger and ledger.current:
            held = {self.model.places[name].content for name in ledger.current.destinations}
            promise(held == {self.model.keys[ledger.current.hash].secret}, "a restored key is not what consumers read")

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates)
    def apply_settings(self, planned: list[tuple[Aim, Fate]]) -> None:
        """A person wants the settings to reach the current key at once."""
        self.model.tell("apply-settings starts")
        self._fate(planned)
        self.numbers += 1
        keys = set(self.model.keys)
        ended = play(run_apply(self.model, "checkout", Identity(UUID(int=3 * 10**6 + self.numbers), self.model.time)))
        self._after(ended)
        promise(set(self.model.keys) == keys, "apply-settings made or deleted a key")
        ledger = self.model.ledger("checkout")
        if ended.succeeded and ledger and ledger.current and not ledger.current.budget:
            limit = self.model.keys[ledger.current.hash].request.limit
            promise(limit == self.rotation.key.limit_usd, "apply-settings did not apply the limit")

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates, keys=st.sampled_from(["revoke", "keep", "keep-until"]))
    def remove(self, planned: list[tuple[Aim, Fate]], keys: str) -> None:
        """A person takes the rotation away, and fills the form in anew."""
        self.model.tell(f"remove-rotation starts, keys: {keys}")
        # Nothing keeps a write of long ago out of a destination that no rotation has any more.
        self.model.late_effects_happen()
        for name, place in self.model.places.items():
            # Whoever removes a rotation knows that its keys die.
            self.by_hand[name] = place.content
        current = self._current()
        self._fate(planned)
        self.numbers += 1
        until = {"revoke": self.model.time, "keep": None, "keep-until": self.model.time + timedelta(hours=1)}[keys]
        identity = Identity(UUID(int=4 * 10**6 + self.numbers), self.model.time)
        self._after(ended := play(run_remove(self.model, "checkout", identity, until)))
        if ended.succeeded:
            promise("checkout" not in self.model.deployments, "the deployment of a removed rotation is there")
        if ended.succeeded and keys == "keep" and current:
            promise(current in self.model.alive(), "a kept key died")
        self.model.deployments["checkout"] = self.rotation
        self._let_go_of_kept_keys()

    def _let_go_of_kept_keys(self) -> None:
        ledger = self.model.ledger("checkout")
        # What the form still names to be adopted is the rotation's to revoke, once a run has taken it up.
        explained = (ledger.hashes() if ledger else set()) | {self.rotation.adopt}
        for key in self.model.keys.values():
            if read_marker(key.request.name) is None and key.hash not in explained:
                self.foreign.setdefault(key.hash, key.settings())
                self.made.pop(key.secret, None)

    @rule(planned=fates, connection=st.sampled_from(["openrouter", "other"]), repair=st.booleans())
    def audit(self, planned: list[tuple[int, Fate]], connection: str, repair: bool) -> None:
        """A daily audit, or one that repairs."""
        self.model.tell(f"an audit of {connection} starts{' with repair' if repair else ''}")
        protected, ledgers = self._out_of_reach(), json.dumps(self.model.variables)
        contents = {name: list(place.versions) for name, place in self.model.places.items()}
        everything = {key.hash: key.settings() for key in self.model.keys.values()}
        self._fate(planned)
        self._audit(connection, repair=repair)
        after = {key.hash: key.settings() for key in self.model.keys.values()}
        promise(contents == {n: p.versions for n, p in self.model.places.items()}, "an audit wrote a destination")
        promise(repair or after == everything, "an audit without repair changed a key")
        promise(repair or json.dumps(self.model.variables) == ledgers, "an audit without repair wrote a ledger")
        promise(protected.items() <= after.items(), "a repair changed a key that it must not touch")
        restored = ledgers == "{}" and self._current() is not None
        promise(restored or json.dumps(self.model.variables) == ledgers, "a repair changed a ledger")
        if restored:
            COUNTED["restored ledgers"] += 1
            check_agreement(self.model, self.rotation)

    @precondition(lambda self: self._is_simple())
    @rule(planned=fates)
    def audit_after_the_ledger_was_lost(self, planned: list[tuple[int, Fate]]) -> None:
        """A person deletes the ledger of a rotation with one key, and lets an audit repair it."""
        self.delete_the_ledger()
        self.model.time += timedelta(hours=2)
        self.audit(planned, self.rotation.connection, repair=True)

    def _is_simple(self) -> bool:
        ledger = self.model.ledger("checkout")
        return ledger is not None and ledger.current is not None and not (ledger.superseded or ledger.pending)

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

    def _audit(self, connection: str, *, repair: bool) -> list[AuditFinding]:
        self.numbers += 1
        identity = Identity(UUID(int=5 * 10**6 + self.numbers), self.model.time)
        audited = play(run_audit(self.model, connection, identity, repair=repair))
        self._after(audited.ended)
        findings = list(audited.report.findings) if audited.report else []
        COUNTED["findings"] += len(findings)
        COUNTED["repairs"] += sum(finding.repaired for finding in findings)
        return findings

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

    @rule(pause_at=aims, retry_of_the_same=st.booleans(), emergency=st.booleans(), planned=fates)
    def paused(self, pause_at: Aim, retry_of_the_same: bool, emergency: bool, planned: list[tuple[Aim, Fate]]) -> None:
        """A run is stopped in its tracks, loses its slot to another one, and goes on after that one has ended."""
        first = self._identity()
        other = self._identity(emergency=emergency)
        second = Identity(first.id, first.first_started, 2) if retry_of_the_same else other
        self.model.tell(f"run {first.id.int} will be paused while run {second.id.int} runs")
        for ended in play(self._interleaved(first, second, pause_at, planned)):
            self._after(ended)

    async def _interleaved(
        self, first: Identity, second: Identity, pause_at: Aim, planned: list[tuple[Aim, Fate]]
    ) -> list[Ended]:
        process, paused, go_on = Process(self.model, "paused run"), asyncio.Event(), asyncio.Event()
        seen: Counter[str] = Counter()
        reached = False

        async def gate(effect: str) -> None:
            nonlocal reached
            reached = reached or hits(pause_at, effect, seen)
            seen[effect] += 1
            if reached and not go_on.is_set() and not effect.startswith(NOT_PAUSED_AT):
                self.model.tell(f"paused before: {effect}")
                COUNTED["pauses"] += 1
                paused.set()
                await go_on.wait()
                self.model.tell("the paused run goes on")

        process.gate = gate
        late = asyncio.ensure_future(run_protocol(self.model, self.rotation, first, process, self.steps))
        await asyncio.wait([late, asyncio.ensure_future(paused.wait())], return_when=asyncio.FIRST_COMPLETED)
        self._fate(planned)
        quick = await run_protocol(self.model, self.rotation, second, Process(self.model, "second run"), self.steps)
        self.model.fate = lambda _effect: Fate.WORKS
        go_on.set()
        paused.set()
        return [quick, await late]

    # --- what people and the world do in between ---

    @rule(name=st.sampled_from(sorted(PLACES)), which=nth)
    def edit_a_destination(self, name: str, which: int) -> None:
        """A person writes something else into a destination: anything, or a key that was there before."""
        self._put_by_hand(name, nth_of(["a foreign secret", *filter(None, self.versions[name])], which))

    @precondition(lambda self: self._former_keys())
    @rule(where=nth, which=nth)
    def put_a_former_key_back(self, where: int, which: int) -> None:
        """A person lets consumers read a superseded key again."""
        self._put_by_hand(nth_of(sorted(self.rotation.destinations), where), nth_of(self._former_keys(), which))

    def _put_by_hand(self, name: str, content: str) -> None:
        self.model.tell(f"by hand: {name} is set to {content}")
        self.model.places[name].versions.append(content)
        self.versions[name].append(content)
        self.by_hand.pop(name, None)
        # Who puts in a dead key, or a key of a rotation that was taken away, knows that it does not work for ever.
        if not self.model.works(content) or self.last_ledger.removed:
            self.by_hand[name] = content

    def _former_keys(self) -> list[str]:
        ledger = self.model.ledger("checkout")
        former = [self.model.keys.get(key.hash) for key in (ledger.superseded if ledger else ())]
        return [key.secret for key in former if key and self.model.works(key.secret)]

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(which=nth)
    def delete_a_key(self, which: int) -> None:
        """A person deletes one of the rotation's keys at OpenRouter."""
        ours = sorted(set(self.model.keys) - set(self.foreign))
        if not ours:
            return
        # A write of this key that is still under way would put a key into a destination that a person has just killed.
        self.model.late_effects_happen()
        chosen = self.model.keys.pop(nth_of(ours, which))
        self.deleted.add(chosen.hash)
        self.model.tell(f"by hand: {chosen.hash} is deleted")
        for name, place in self.model.places.items():
            if place.content == chosen.secret:
                self.by_hand[name] = chosen.secret

    @rule()
    def delete_the_ledger(self) -> None:
        """A person deletes the ledger's variable."""
        self.model.tell("by hand: the ledger is deleted")
        self.model.late_effects_happen()
        self.model.variables.clear()
        self.last_ledger = Ledger()
        self._lose_sight()

    def _lose_sight(self) -> None:
        # Without a ledger nothing can know of keys in an account that the rotation does not use; an audit of it does.
        if self.model.ledger("checkout") is None:
            used = self.model.connections[self.rotation.connection]
            self.out_of_sight |= {key.hash for key in self.model.keys.values() if key.account != used}

    @rule(names=destinations, overlap=overlaps, limit=st.sampled_from([50, 75]))
    def change_the_rotation(self, names: list[str], overlap: timedelta, limit: int) -> None:
        """A person changes destinations, overlap and limit."""
        self.model.tell(f"by hand: the rotation now goes to {names}, overlap {overlap}, limit {limit}")
        for name in set(names) - set(self.rotation.destinations):
            # Nobody has promised anything for what a new destination holds, until a run has published to it.
            self.by_hand[name] = self.model.places[name].content
        key = self.rotation.key.model_copy(update={"limit_usd": limit})
        changes = {"destinations": names, "overlap": overlap, "key": key}
        self._change(**changes)

    def _change(self, **changes: Any) -> None:
        self.rotation = self.rotation.model_copy(update=changes)
        self.model.deployments["checkout"] = self.rotation

    @rule(retirement=retirements, minimum_age=st.sampled_from([timedelta(0), timedelta(hours=12)]))
    def change_the_policies(self, retirement: Retirement, minimum_age: timedelta) -> None:
        """A person changes how superseded keys end."""
        self.model.tell(f"by hand: the retirement is now {retirement!r}, the minimum age {minimum_age}")
        self._change(retirement=retirement, minimum_age=minimum_age)

    @rule(
        guardrail=st.sampled_from([None, "guardrail-1", "guardrail-2"]),
        inherit=st.booleans(),
        carry=st.booleans(),
        reset=st.sampled_from(["none", "daily", "monthly"]),
        expires=st.sampled_from([None, timedelta(days=40)]),
    )
    def change_the_key(
        self, guardrail: str | None, inherit: bool, carry: bool, reset: str, expires: timedelta | None
    ) -> None:
        """A person changes what every new key gets."""
        changes = {
            "guardrail_id": guardrail,
            "inherit": inherit,
            "carry_budget": carry,
            "limit_reset": reset,
            "expires_after": expires,
        }
        self.model.tell(f"by hand: the key's settings are now {changes}")
        self._change(key=self.rotation.key.model_copy(update=changes))

    @rule(tells=st.booleans())
    def openrouter_tells_the_last_use(self, tells: bool) -> None:
        """Keys made from now on show when they were used last, or do not."""
        self.model.tells_last_use = tells

    @rule(adopt=st.booleans())
    def adopt_or_not(self, adopt: bool) -> None:
        """A person names a key to adopt, which counts only while the rotation has none."""
        hash_ = None
        if adopt and self.rotation.adopt is None:
            key = ModelKey(
                f"adopted-{self.numbers}",
                f"sk-or-v1-adopted-{self.model.fresh()}",
                KeyRequest(name="made by a person"),
                self.model.connections[self.rotation.connection],
                f"default-of-{self.model.connections[self.rotation.connection]}",
                self.model.time,
                self.model.time,
            )
            self.model.keys[key.hash] = key
            hash_ = key.hash
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
        (self.model.revoked_accounts.add if revoked else self.model.revoked_accounts.discard)(account)

    @rule(name=st.sampled_from(sorted(PLACES)), exists=st.booleans())
    def remove_a_block(self, name: str, exists: bool) -> None:
        """A destination's block is deleted, or made anew."""
        self.model.places[name].exists = exists

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
        for place in self.model.places.values():
            place.exists = True
        # The person on call decides about what is still used, and about a key to adopt that is gone.
        self._change(retirement=Retirement(), minimum_age=timedelta(0), adopt=None)
        self._clean_up_every_account()
        ended = self._rotate(self._identity())
        promise(ended.succeeded, f"I6: the run after quiet failed: {ended.error}")
        check_no_orphan(self.model, self.rotation, self.out_of_sight)
        check_agreement(self.model, self.rotation)
        self._check_that_an_audit_is_content()
        self.model.story[begun:] = ["all went well"]

    def _check_that_an_audit_is_content(self) -> None:
        """One audit with repair, a person who decides about orphans that are in use, and nothing is left to do."""
        for connection in ("openrouter", "other"):
            for finding in self._audit(connection, repair=True):
                promise(finding.kind is not Kind.LEDGER_LOST, "a ledger is lost after a successful run")
                if finding.kind is Kind.ORPHAN and finding.needs_person:
                    used = self.model.keys[finding.key_hash].uses
                    promise(bool(used), f"an orphan that nobody uses was not repaired: {finding.sentence}")
                    del self.model.keys[finding.key_hash]
            # Who has deleted a key by hand knows why it is gone, while the ledger still waits for its end.
            again = [f for f in self._audit(connection, repair=False) if f.key_hash not in self.deleted]
            left = [finding.sentence for finding in again if finding.needs_person]
            promise(not left, f"after quiet an audit of {connection} needs a person: {left}")

    def _clean_up_every_account(self) -> None:
        # Keys of an account can be revoked only while the connection holds that account's management key: the person on
        # call does what the error says, puts each one back in turn, and lets what is overdue be revoked.
        self._rotate(self._identity())
        self.model.connections["openrouter"] = "account-1"
        self._lose_sight()
        self._rotate(self._identity())
        ledger = self.model.ledger("checkout")
        ends = [key.revoke_at for key in ledger.superseded] if ledger else []
        self.model.time = max([self.model.time + timedelta(days=8), *ends])
        for account in ("account-2", "account-1"):
            self.model.connections["openrouter"] = account
            self.numbers += 1
            play(run_retire(self.model, "checkout", Identity(UUID(int=10**7 + self.numbers), self.model.time)))

    @invariant()
    def count(self) -> None:
        """Count the steps."""
        COUNTED["steps"] += 1

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
    if unknown := set(rules) - set(known):
        raise ValueError(f"there is no rule {unknown}")
    taken = set(rules or known)
    # One rule may call another, even one that is left out.
    left_out = {name: function for name, function in known.items() if name not in taken}
    chosen = BEGINNINGS | {name: st.just(value) for name, value in begun_with.items()}
    begin = initialize(**chosen)(getattr(Histories.begin, INITIALIZE_RULE_MARKER).function)
    return type("Histories", (Histories,), {**left_out, "begin": begin})
