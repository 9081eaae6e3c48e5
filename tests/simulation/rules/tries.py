"""Rules for tries: they finish what failed for a reason that passes, without a person."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tasks.model import tries
from tasks.model.decisions import Identity
from tasks.model.tries import Coming, Try
from tests.simulation.outcomes import Before
from tests.simulation.promises import promise
from tests.simulation.rules.history import History, Planned
from tests.simulation.runs import Ended
from tests.simulation.strategies import fates
from tests.simulation.world.fates import Fate

ENOUGH = 3
"""The number of tries without a fault after which a run must have succeeded, or need a person."""
SOON = timedelta(minutes=1)
"""When a regular run is due: before the first try."""


class Tries(History):
    """A run fails, and its scheduled tries run."""

    @rule(planned=fates, emergency=st.booleans(), scheduled=st.booleans(), regular=st.booleans())
    def rotate_with_tries(self, planned: Planned, emergency: bool, scheduled: bool, regular: bool) -> None:
        """A run fails and no person reacts; no other fault follows, and its tries run as scheduled.

        A regular run may come before the first of them.
        """
        # A regular run does not do the work of an emergency.
        regular = regular and not emergency
        identity = self._identity(emergency=emergency, scheduled=scheduled)
        self.model.record(f"run {self.numbers} starts, and nobody is there{' (emergency)' * emergency}")
        if emergency:
            self.model.settle()
        before, unordered = Before.of(self.model), self._clock_was_put_back()
        self._fate(planned)
        ended = self._rotate(identity)
        origin, number = Try(0, identity.id, identity.first_started, identity.scheduled_for), 0
        while ended.error is not None and tries.passes_by_itself(ended.error) and number < ENOUGH:
            origin, ended = self._try(origin, ended, identity, regular=regular and not number)
            number += 1
        passes = ended.error is not None and tries.passes_by_itself(ended.error)
        promise(not passes, f"I9: {number} tries did not finish what passes by itself: {ended.error}")
        if unordered:
            # A try may find that a later run seems to have rotated already, and then does nothing.
            return
        if ended.error is not None and number == 0 and not self._is_for_a_person(planned):
            self._check_that_a_person_is_needed(identity, ended)
        ledger = self.model.ledger("checkout")
        current = ledger.current if ledger else None
        if not (ended.succeeded and number and current):
            return
        if current != before.ledger.current and not regular:
            promise(current.rotated_by == identity.id, "a try did not finish the run that had failed")
        done = current.rotated_by == identity.id or current.since > identity.first_started
        promise(done or scheduled, "I9: a person's order was lost with its failure")

    def _try(self, origin: Try, failed: Ended, first: Identity, *, regular: bool) -> tuple[Try, Ended]:
        assert failed.error is not None
        soon = Coming(UUID(int=10**8 + self.numbers), self.model.time + SOON)
        following = tries.next_try(
            "checkout",
            origin,
            [soon] if regular else [],
            self.model.time,
            emergency=first.emergency,
            asked=tries.asked_to_wait(failed.error),
        )
        promise(following.at > self.model.time, "I9: a try does not wait")
        self.model.late_effects_happen()
        if regular:
            self.model.time = soon.at
            self.model.record("a regular run comes")
            own = self._identity(scheduled=True)
            ended = self._rotate(own)
            if following.run is not None:
                return Try(following.number, own.id, own.first_started, own.scheduled_for), ended
        self.model.time = max(following.at, self.model.time)
        self.numbers += 1
        again = Try.read(origin.labels(following.number), UUID(int=10**7 + self.numbers), self.model.time)
        self.model.record(f"try {again.number} comes")
        identity = Identity(again.run_id, again.since, 2, first.emergency, again.scheduled_for)
        return again, self._rotate(identity)

    def _clock_was_put_back(self) -> bool:
        """Return whether a key is dated in the future, so that it is unknown which run came first."""
        ledger = self.model.ledger("checkout")
        times = [key.created_at for key in self.model.keys.values()]
        times += [ledger.current.since] if ledger and ledger.current else []
        return max(times, default=self.model.time) > self.model.time

    def _is_for_a_person(self, planned: Planned) -> bool:
        # The model refuses a single call with 403, which a run must take for a permanent refusal.
        return any(fate is Fate.FORBIDDEN for _, fate in planned)

    def _check_that_a_person_is_needed(self, identity: Identity, failed: Ended) -> None:
        """Check that a run which ended without a try does not succeed when repeated: it did need a person."""
        self.model.record(f"run {identity.id.int} is tried again although a person was called")
        again = self._rotate(Identity(identity.id, identity.first_started, 2, identity.emergency))
        promise(not again.succeeded, f"I9: a person was called for what passes by itself: {failed.error}")
