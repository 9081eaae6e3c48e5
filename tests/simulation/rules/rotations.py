"""Rules for rotations: by schedule, by hand, planned and retried."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from tasks.model.decisions import Identity
from tests.simulation import outcomes
from tests.simulation.invariants import check_agreement, check_no_older_key, check_no_orphan
from tests.simulation.outcomes import Before
from tests.simulation.promises import promise
from tests.simulation.rules.history import History, Planned
from tests.simulation.runs import (
    Ended,
    play,
    run_plan,
    run_protocol,
)
from tests.simulation.strategies import (
    fates,
    nth,
    nth_of,
)


class Rotations(History):
    """A rotation is run, planned and retried."""

    @rule(planned=fates, emergency=st.booleans(), scheduled=st.booleans())
    def rotate(self, planned: Planned, emergency: bool, scheduled: bool) -> None:
        """A new run, by schedule or by hand."""
        identity = self._identity(emergency=emergency, scheduled=scheduled)
        self.model.record(f"run {self.numbers} starts{' (emergency)' * emergency}{' (scheduled)' * scheduled}")
        if emergency:
            # An emergency revokes keys at once, so nothing may arrive late here.
            self.model.settle()
        before, spendable = Before.of(self.model), self._spendable()
        seen = outcomes.in_sight(self.model, self.rotation, self.made)
        self._fate(planned)
        ended = self._rotate(identity)
        if ended.succeeded:
            self.out_of_sight -= seen
            self._check_rotated(identity, before, spendable)
            self._check_left_told(ended)

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
            outcomes.check_looks_again(self.model, before)
            return
        outcomes.check_budget(self.model, before)
        former = before.ledger.current
        if former and former.hash in before.keys and self.rotation.overlap and former.hash != self._current():
            alive = former.hash in self.model.alive() or before.keys[former.hash].disabled
            promise(alive, "a superseded key died before its overlap ended")
        superseded = self.last_ledger.superseded
        capped = not any(key.capped is False and key.late_until for key in superseded)
        # A key that a late write may bring back is capped only after that.
        if self.rotation.key.carry_budget and spendable is not None and capped:
            left = self._spendable_with_all()
            promise(left is not None and left <= spendable, f"a rotation made {spendable} USD to {left} USD")

    def _check_left_told(self, ended: Ended) -> None:
        """Check that the message names each former place where a key is left or has ended, or says there are more."""
        superseded = {key.hash for key in self.last_ledger.superseded}
        left = [address for address, key_hash in self.left.items() if key_hash in superseded]
        said = ended.message or ""
        named = all(address in said for address in [*left, *self.ended_where_left]) or " more may still" in said
        promise(named, f"nobody was told that {left or self.ended_where_left} was left with a key")

    def _spendable_with_all(self) -> Decimal | None:
        ledger = self.model.ledger("checkout")
        alive = [self.model.keys[key] for key in (ledger.hashes() if ledger else ()) if key in self.model.alive()]
        amounts = [key.may_spend(self.model.time) for key in alive]
        return None if None in amounts else sum(filter(None, amounts), Decimal(0))

    def _spendable(self) -> Decimal | None:
        """Return what consumers may still spend with the current and superseded keys, if that is limited."""
        ledger = self.model.ledger("checkout")
        if ledger is None or ledger.current is None or ledger.current.hash not in self.model.alive():
            return None
        current = self.model.keys[ledger.current.hash]
        if current.account != self.model.connections.get(ledger.current.connection):
            # What was spent in a former account of the connection cannot be known.
            return None
        if current.request.limit != self.rotation.key.limit_usd or ledger.pending or ledger.superseded:
            return None
        if self.out_of_sight - set(self.foreign):
            # A key that is in no ledger may be found again, with a limit of its own.
            return None
        if current.request.limit_reset != self.rotation.key.terms(self.model.time).limit_reset:
            return None
        return current.may_spend(self.model.time)

    @precondition(lambda self: self.runs)
    @rule(planned=fates, which=nth)
    def retry(self, planned: Planned, which: int) -> None:
        """Somebody retries any earlier run."""
        index = which % len(self.runs)
        run = self.runs[index]
        self.model.time += timedelta(seconds=1)
        completed = run.id in self.completed
        self.runs[index] = Identity(run.id, run.first_started, run.attempt + 1, run.emergency, completed=completed)
        self.model.record(f"run {run.id.int} is retried")
        if run.emergency:
            self.model.settle()
        ledger, keys = self.model.ledger("checkout"), set(self.model.keys)
        done = ledger and ledger.current and run.id in (ledger.current.made_by, ledger.current.rotated_by)
        self._fate(planned)
        ended = self._rotate(self.runs[index])
        made = set(self.model.keys) - keys
        promise(not (done or completed) or not made, "I6: a Retry of a finished run made another key")
        if ended.succeeded and self.last_ledger.current:
            outcomes.check_scheduled(self.model)
            due = {key.hash for key in self.last_ledger.due(self.model.time)}
            promise(not due, f"a Retry left {due}, which were due")

    @precondition(lambda self: len(self.rotation.destinations) > 1)
    @rule(which=nth, emergency=st.booleans())
    def rotate_for_one_destination(self, which: int, emergency: bool) -> None:
        """A person starts a run with one destination in its parameters, as before others were added."""
        one = nth_of(self.rotation.destinations, which)
        self.model.record(f"a run for {one} only starts{' (emergency)' * emergency}")
        if emergency:
            self.model.settle()
        narrowed = self.rotation.model_copy(update={"destinations": [one]})
        self._after(play(run_protocol(self.model, narrowed, self._identity(emergency=emergency), None, self.steps)))

    @rule(emergency=st.booleans(), scheduled=st.booleans())
    def plan(self, emergency: bool, scheduled: bool) -> None:
        """A person starts a plan, and then a run."""
        identity = self._identity(emergency=emergency, scheduled=scheduled)
        self.model.record(f"a plan of run {self.numbers}{' (emergency)' * emergency}{' (scheduled)' * scheduled}")
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
            older = before.ledger.current, *before.ledger.superseded
            unsaid = [key.label for key in older if f"{key.label} at once" not in steps]
            promise(not unsaid, f"a plan did not say that an emergency ends the older keys {unsaid}")

    def _everything(self) -> str:
        model = self.model
        keys = [(key.settings(), key.uses) for key in model.keys.values()]
        return repr(
            (keys, model.variables, model.places, model.deployments, sorted(model.retirements.items()), model.events)
        )
