"""Histories by the thousand: a person, a scheduler and a malicious fate take turns, and the invariants are watched.

The machine is Hypothesis' rule-based state machine over the model world.
A new capability joins it with a rule of its own (what may happen) and, where it promises something new, with a
check that is called after every effect.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flows.steps import PLAIN, Steps
from tasks.decisions import Identity
from tasks.rotation import KeySettings, Rotation
from tests.simulation.invariants import check_agreement, check_no_older_key, check_no_orphan
from tests.simulation.model import Ended, Fate, Model, ModelKey, Place, Process, play, run_protocol, run_retire

PLACES = {"vault-secret/a": True, "vault-secret/b": True, "secret/c": False, "infisical-secret/d": False}
"""The destinations, and whether they check and set."""
NOT_PAUSED_AT = ("write the ledger", "delete a key", "write secret", "write infisical")
"""Where a store without check-and-set is written: guard and write belong together there, and only the slot protects."""
COUNTED: Counter[str] = Counter()
"""What the histories of this process did, for the summary."""

fates = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([f for f in Fate if f is not Fate.WORKS])), max_size=3)
destinations = st.lists(st.sampled_from(sorted(PLACES)), min_size=1, max_size=3, unique=True)
overlaps = st.sampled_from([timedelta(0), timedelta(minutes=5), timedelta(hours=24), timedelta(days=7)])


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
        self.broken = False
        self.out_of_sight: set[str] = set(self.foreign)

    def _foreign_keys(self) -> dict[str, Any]:
        from blocks.openrouter import KeyRequest

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
        return {key.hash: key.shown() for key in self.model.keys.values()}

    @initialize(names=destinations, overlap=overlaps)
    def begin(self, names: list[str], overlap: timedelta) -> None:
        """A person fills the form in."""
        self.rotation = Rotation(
            name="checkout",
            connection="openrouter",
            key=KeySettings(name="checkout service", limit_usd=50),
            destinations=names,
            overlap=overlap,
        )

    # --- what is watched after every effect ---

    def watch(self, effect: str) -> None:
        """Check I1, I3, I4 and I7."""
        COUNTED["effects"] += 1
        for key in self.model.keys.values():
            self.made.setdefault(key.secret, key.hash)
        self._watch_destinations(effect)
        stored = json.dumps(self.model.variables)
        self.promise(not any(secret in stored for secret in self.made), f"I3: a key is in the ledger after: {effect}")
        untouched = {h: self.model.keys[h].shown() for h in self.foreign if h in self.model.keys}
        self.promise(untouched == self.foreign, f"I4: a foreign key was changed by: {effect}")

    def _watch_destinations(self, effect: str) -> None:
        for name, place in self.model.places.items():
            self.promise(
                place.versions[: len(self.versions[name])] == self.versions[name], f"I7: {name} lost a version"
            )
            self.promise(place.other_fields == {"username": "someone"}, f"I7: {name} lost a field")
            if len(place.versions) > len(self.versions[name]) and place.content != self.by_hand.get(name):
                self.by_hand.pop(name, None)
            self.versions[name] = list(place.versions)
            if name in self.rotation.destinations and name not in self.by_hand and place.content in self.made:
                self.promise(self.model.works(place.content), f"I1: {name} holds a dead key after: {effect}")

    def promise(self, kept: bool, what: str) -> None:
        """Make sure of an invariant."""
        if not kept:
            self.broken = True
            raise AssertionError(what)

    def _check_said(self, ended: Ended) -> None:
        said = f"{ended.message} {ended.error!r}"
        self.promise(not any(secret in said for secret in self.made), "I3: a key is in a message")

    # --- runs ---

    def _fate(self, planned: list[tuple[int, Fate]]) -> None:
        by_number, number = dict(planned), iter(range(10**9))

        def fate(_effect: str) -> Fate:
            chosen = by_number.get(next(number), Fate.WORKS)
            COUNTED["crashes" if chosen in (Fate.KILLED_BEFORE, Fate.KILLED_AFTER) else "faults"] += (
                chosen is not Fate.WORKS
            )
            return chosen

        self.model.fate = fate

    def _identity(self, *, emergency: bool = False) -> Identity:
        self.numbers += 1
        self.model.time += timedelta(seconds=1)
        identity = Identity(UUID(int=self.numbers), self.model.time, 1, emergency)
        self.runs.append(identity)
        return identity

    def _rotate(self, identity: Identity, process: Process | None = None) -> Ended:
        ended = play(run_protocol(self.model, self.rotation, identity, process, self.steps))
        self._after(ended)
        return ended

    def _after(self, ended: Ended) -> None:
        COUNTED["runs"] += 1
        self._check_said(ended)
        self.model.fate = lambda _effect: Fate.WORKS

    @rule(planned=fates, emergency=st.booleans())
    def rotate(self, planned: list[tuple[int, Fate]], emergency: bool) -> None:
        """A new run, by schedule or by hand."""
        identity = self._identity(emergency=emergency)
        self.model.tell(f"run {self.numbers} starts{' (emergency)' if emergency else ''}")
        before = self._current()
        self._fate(planned)
        ended = self._rotate(identity)
        if ended.succeeded:
            check_agreement(self.model, self.rotation)
        if ended.succeeded and emergency:
            check_no_older_key(self.model, self.rotation, self.out_of_sight)
        if ended.succeeded and not emergency and before and self.rotation.overlap and self._current() != before:
            self.promise(before in self.model.keys, "a superseded key died before its overlap ended")

    def _current(self) -> str | None:
        """The hash of the current key, where it is alive and its ledger can be trusted."""
        ledger = self.model.ledger("checkout")
        return ledger.current.hash if ledger and ledger.current and ledger.current.hash in self.model.keys else None

    @precondition(lambda self: self.runs)
    @rule(planned=fates, data=st.data())
    def retry(self, planned: list[tuple[int, Fate]], data: st.DataObject) -> None:
        """Somebody presses Retry on any run that there ever was."""
        index = data.draw(st.integers(0, len(self.runs) - 1), label="run")
        run = self.runs[index]
        self.runs[index] = Identity(run.id, run.first_started, run.attempt + 1, run.emergency)
        self.model.tell(f"run {run.id.int} is retried")
        ledger, keys = self.model.ledger("checkout"), set(self.model.keys)
        done = ledger and ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by)
        self._fate(planned)
        self._rotate(self.runs[index])
        self.promise(not done or set(self.model.keys) <= keys, "I6: a Retry of a finished run made another key")

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates)
    def retire(self, planned: list[tuple[int, Fate]]) -> None:
        """A scheduled retirement."""
        self.model.tell("a retirement starts")
        self._fate(planned)
        identity = Identity(UUID(int=10**6 + self.numbers), self.model.time)
        self._after(play(run_retire(self.model, "checkout", identity)))

    @rule(pause_at=st.integers(0, 30), retry_of_the_same=st.booleans(), emergency=st.booleans(), planned=fates)
    def paused(self, pause_at: int, retry_of_the_same: bool, emergency: bool, planned: list[tuple[int, Fate]]) -> None:
        """A run is stopped in its tracks, loses its slot to another one, and goes on after that one has ended."""
        first = self._identity()
        other = self._identity(emergency=emergency)
        second = Identity(first.id, first.first_started, 2) if retry_of_the_same else other
        self.model.tell(f"run {first.id.int} will be paused while run {second.id.int} runs")
        for ended in play(self._interleaved(first, second, pause_at, planned)):
            self._after(ended)

    async def _interleaved(
        self, first: Identity, second: Identity, pause_at: int, planned: list[tuple[int, Fate]]
    ) -> list[Ended]:
        process, paused, go_on, seen = Process(self.model, "paused run"), asyncio.Event(), asyncio.Event(), [0]

        async def gate(effect: str) -> None:
            seen[0] += 1
            if seen[0] > pause_at and not go_on.is_set() and not effect.startswith(NOT_PAUSED_AT):
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

    @rule(name=st.sampled_from(sorted(PLACES)), data=st.data())
    def edit_a_destination(self, name: str, data: st.DataObject) -> None:
        """A person writes something else into a destination: anything, or a key that was there before."""
        content = data.draw(st.sampled_from(["a foreign secret", *filter(None, self.versions[name])]), label="content")
        self.model.tell(f"by hand: {name} is set to {content}")
        self.model.places[name].versions.append(content)
        self.versions[name].append(content)
        self.by_hand.pop(name, None)
        if not self.model.works(content):
            self.by_hand[name] = content

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(data=st.data())
    def delete_a_key(self, data: st.DataObject) -> None:
        """A person deletes one of the rotation's keys at OpenRouter."""
        ours = sorted(set(self.model.keys) - set(self.foreign))
        if not ours:
            return
        chosen = self.model.keys.pop(data.draw(st.sampled_from(ours), label="key"))
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
        self.rotation = self.rotation.model_copy(update=changes)

    @rule(connection=st.sampled_from(["openrouter", "other"]))
    def change_the_connection(self, connection: str) -> None:
        """A person lets the rotation use another account."""
        self.model.tell(f"by hand: the rotation now uses the connection {connection}")
        self.rotation = self.rotation.model_copy(update={"connection": connection})
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
        self.broken = True
        self.model.late_effects_happen()
        self.model.revoked_accounts.clear()
        for place in self.model.places.values():
            place.exists = True
        self._clean_up_every_account()
        ended = self._rotate(self._identity())
        self.promise(ended.succeeded, f"I6: the run after quiet failed: {ended.error}")
        check_no_orphan(self.model, self.rotation, self.out_of_sight)
        check_agreement(self.model, self.rotation)
        self.broken = False

    def _clean_up_every_account(self) -> None:
        # Keys of an account can be revoked only while the connection holds that account's management key: the person on
        # call does what the error says, puts each one back in turn, and lets what is overdue be revoked.
        self._rotate(self._identity())
        self.model.connections["openrouter"] = "account-1"
        self._lose_sight()
        self._rotate(self._identity())
        self.model.time += timedelta(days=8)
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
        if not self.broken and hasattr(self, "rotation"):
            self.quiet()
        note("\n".join(self.model.story))
