"""Rules for the end of superseded keys and of a rotation: retire, restore, write off, remove."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.rotation import EXPIRY_MARGIN
from tests.simulation import outcomes
from tests.simulation.outcomes import Before
from tests.simulation.promises import promise
from tests.simulation.rules.history import History, Planned
from tests.simulation.runs import (
    Ended,
    play,
    run_apply,
    run_remove,
    run_restore,
    run_retire,
    run_write_off,
)
from tests.simulation.strategies import (
    fates,
    nth,
    nth_of,
)


class SupersededKeys(History):
    """Superseded keys are used, retired, restored and written off; settings are applied; the rotation is removed."""

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates, on_time=st.booleans())
    def retire(self, planned: Planned, on_time: bool) -> None:
        """A retirement, at its scheduled time or started by a person."""
        if on_time:
            self._wait_for_a_retirement()
        self.model.record("a retirement starts")
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
        """A person restores the most recently superseded key."""
        self.model.record("a restore starts")
        before = Before.of(self.model)
        self._fate(planned)
        self.restoring, self.hurried = True, False
        self._after(ended := play(run_restore(self.model, "checkout", self._other_identity())))
        self.restoring = False
        ledger = self.model.ledger("checkout")
        if ended.succeeded and ledger and ledger.current:
            held = {self.model.places[name].content for name in ledger.current.destinations}
            key = self.model.keys.get(ledger.current.hash)
            promise(key is not None and held == {key.secret}, "a restored key is not what consumers read")
            end = key.request.expires_at if key else None
            promise(end is None or end >= before.time + EXPIRY_MARGIN, "a restored key expires before it is replaced")
            promise(ledger.current.hash in {k.hash for k in before.ledger.superseded}, "a restore restored nothing")
            told = before.emitted_since(self.model, Event.KEY_RESTORED, ledger.current.hash)
            promise(told, "nobody was told of a restored key")
            outcomes.check_scheduled(self.model)

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates)
    def apply_settings(self, planned: Planned) -> None:
        """A person applies the settings to the current key at once."""
        self.model.record("apply-settings starts")
        before = Before.of(self.model)
        self._fate(planned)
        self._after(ended := play(run_apply(self.model, "checkout", self._other_identity())))
        promise(set(self.model.keys) == set(before.keys), "apply-settings made or deleted a key")
        if ended.succeeded:
            outcomes.check_applied(self.model, self.rotation, before)

    @precondition(lambda self: self.last_ledger.superseded)
    @rule(which=nth)
    def write_off(self, which: int) -> None:
        """A person tries to write off a superseded key, whether or not it can be revoked."""
        key = nth_of(self.last_ledger.superseded, which)
        self.model.record(f"write-off-key starts for {key.hash}")
        before = Before.of(self.model)
        self._after(ended := play(run_write_off(self.model, "checkout", self._other_identity(), key.hash)))
        promise(set(self.model.keys) == set(before.keys), "write-off-key made or deleted a key")
        if ended.succeeded:
            outcomes.check_written_off(self.model, before, key)
            # No run will revoke it, unless an audit finds it.
            self.out_of_sight.add(key.hash)
            # Nor does the ledger name its former places any more.
            self.left = {address: left for address, left in self.left.items() if left != key.hash}

    @precondition(lambda self: self.model.ledger("checkout") is not None)
    @rule(planned=fates, keys=st.sampled_from(["revoke", "keep", "keep-until"]))
    def remove(self, planned: Planned, keys: str) -> None:
        """A person removes the rotation, and adds it again."""
        self.model.record(f"remove-rotation starts, keys: {keys}")
        until = {"revoke": self.model.time, "keep": None, "keep-until": self.model.time + timedelta(hours=1)}[keys]
        identity = self._other_identity()
        self.model.settle()
        before = Before.of(self.model)
        ended = self._remove(identity, until, planned)
        if ended.succeeded:
            outcomes.check_removed(self.model, before, keys, until)
            outcomes.check_ends_told(self.model, before)
            outcomes.check_scheduled(self.model)
        self.removals.append((identity, until, ended.succeeded))
        self._fill_the_form_in_anew()

    def _remove(self, identity: Identity, until: datetime | None, planned: Planned) -> Ended:
        # Once the rotation is removed, nothing keeps a late write out of its former destinations.
        self.model.settle()
        # After a removal, a destination may hold a key that was revoked.
        self.serving.clear()
        self._fate(planned)
        self._after(ended := play(run_remove(self.model, "checkout", identity, until)))
        return ended

    @precondition(lambda self: self.removals)
    @rule(which=nth)
    def retry_a_removal(self, which: int) -> None:
        """Somebody retries a removal, although the rotation was added again since."""
        identity, until, completed = self.removals.pop(which % len(self.removals))
        self.model.record(f"removal {identity.id.int} is retried")
        # Its own late writes are no sign that the rotation is back.
        self.model.settle()
        ledger = self.model.ledger("checkout")
        is_back = ledger is not None and ledger.current is not None and ledger.current.since > identity.first_started
        again = Identity(identity.id, identity.first_started, 2, completed=completed)
        if completed or is_back:
            before = self._what_is_alive()
            self._after(play(run_remove(self.model, "checkout", again, until)))
            promise(self._what_is_alive() == before, "a Retry of a removal took away what had come back")
        else:
            self._remove(again, until, [])
            self._fill_the_form_in_anew()

    def _what_is_alive(self) -> tuple[object, ...]:
        model = self.model
        contents = {name: place.content for name, place in model.places.items()}
        return set(model.keys), dict(model.deployments), model.ledger("checkout"), contents

    @precondition(lambda self: self.last_ledger.superseded and self.last_ledger.superseded[0].since)
    @rule()
    def go_on_using_a_former_key(self) -> None:
        """A consumer uses a superseded key until its longest overlap ends, and a retirement runs."""
        former = self.last_ledger.superseded[0]
        key, since = self.model.keys.get(former.hash), former.since or self.model.time
        last_call = max(since + self.last_ledger.retirement.max_overlap, former.overlap_ends or since)
        if key is None or last_call < self.model.time:
            return
        self.model.late_effects_happen()
        self.model.time = last_call
        self.model.record(f"a consumer uses {key.hash} until {last_call}")
        if key.works(self.model.time):
            key.uses.append((self.model.time - timedelta(minutes=1), Decimal(0)))
        self.retire(planned=[], on_time=False)
