"""A state machine that generates histories of runs, people and faults in any order, and checks the promises.

It is a rule-based state machine of Hypothesis over the model world. A new capability needs a rule (what may happen) and
a check of its promise: in `watching` if it must hold after every effect, in `outcomes` if after a successful run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    RULE_MARKER,
    initialize,
    rule,
)

from tasks.audit.findings import Finding, Kind
from tasks.model.rotation import Retirement
from tests.simulation import outcomes
from tests.simulation.invariants import check_agreement, check_no_orphan
from tests.simulation.promises import promise
from tests.simulation.rules.audits import Audits
from tests.simulation.rules.backups import Backups
from tests.simulation.rules.lists import Lists, check_no_dead_key
from tests.simulation.rules.pauses import Pauses
from tests.simulation.rules.rotations import Rotations
from tests.simulation.rules.services import Services
from tests.simulation.rules.settings import Settings
from tests.simulation.rules.superseded import SupersededKeys
from tests.simulation.rules.tries import Tries
from tests.simulation.runs import (
    play,
    run_apply,
    run_retire,
)
from tests.simulation.strategies import (
    BEGINNINGS,
)
from tests.simulation.watching import COUNTED, STORIES


class Histories(Backups, Rotations, SupersededKeys, Audits, Pauses, Settings, Services, Lists, Tries):
    """The histories of one rotation, with every rule."""

    @rule()
    def quiet(self) -> None:
        """Repair every fault and clean up; then a rotation succeeds, and no orphan or outdated key is left anywhere."""
        self.model.record("quiet")
        begun = len(self.model.story)
        self.model.late_effects_happen()
        self.model.revoked_accounts.clear()
        self.model.deleted_connections.clear()
        self.model.longest_name = None
        self.model.late_writers = 0
        for place in self.model.places.values():
            place.exists = True
        # Make the decisions that a run leaves to a person: about keys still in use, a key to adopt that is gone,
        # inherited settings lost with a ledger, and values that are not keys.
        key = self.rotation.key.model_copy(update={"inherit": False})
        self._change(
            retirement=Retirement(), minimum_age=timedelta(0), adopt=None, key=key, overwrite=self.rotation.destinations
        )
        self._clean_up_every_account()
        ended = self._rotate(self._identity())
        promise(ended.succeeded, f"I6: the run after quiet failed: {ended.error}")
        check_no_orphan(self.model, self.rotation, self.out_of_sight)
        check_agreement(self.model, self.rotation)
        check_no_dead_key(self)
        # The audit would rightly ask a person to fix what is left in the lists.
        self.model.lists.clear()
        self._check_that_an_audit_is_content()
        self.model.story[begun:] = ["    all went well"]

    def _check_that_an_audit_is_content(self) -> None:
        """Check that after a repair, and a person's deletion of the orphans in use, no finding needs a person."""
        for connection in ("openrouter", "other"):
            told = len(self.model.events)
            outcomes.check_findings(self.model, connection, self._findings(connection, repair=False), told)
            for finding in self._findings(connection, repair=True):
                promise(finding.kind is not Kind.LEDGER_LOST, "a ledger is lost after a successful run")
                if finding.kind is Kind.ORPHAN and finding.needs_person:
                    used = self.model.keys[finding.key_hash].uses
                    promise(bool(used), f"an orphan that nobody uses was not repaired: {finding.sentence}")
                    del self.model.keys[finding.key_hash]
            # An audit rightly reports a key that a person has changed by hand while the ledger still contains it.
            again = [f for f in self._findings(connection, repair=False) if f.key_hash not in self.touched]
            left = [finding.sentence for finding in again if finding.needs_person]
            promise(not left, f"after quiet an audit of {connection} needs a person: {left}")

    def _findings(self, connection: str, *, repair: bool) -> list[Finding]:
        report = self._audit(connection, repair=repair).report
        return list(report.findings) if report else []

    def _clean_up_every_account(self) -> None:
        # A key can be revoked only while the connection has the management key of its account. So do what the error
        # message asks for: put each management key back in turn, and revoke what is overdue.
        self._rotate(self._identity())
        self.model.connections["openrouter"] = "account-1"
        self._lose_sight()
        moved = self._rotate(self._identity())
        # The first round may only disable keys, which the second one deletes.
        for _ in range(2):
            ledger = self.model.ledger("checkout")
            ends = [key.revoke_at for key in ledger.superseded] if ledger else []
            self.model.time = max([self.model.time + timedelta(days=8), *ends])
            for account in ("account-2", "account-1"):
                self.model.connections["openrouter"] = account
                if ends:
                    # A full ledger refuses a rotation, so only apply-settings can write the new policy into it.
                    self._after(play(run_apply(self.model, "checkout", self._other_identity())))
                self._after(play(run_retire(self.model, "checkout", self._other_identity())))
            if not moved.succeeded:
                # The full ledger has room now; the keys of the other account follow in the next round.
                moved = self._rotate(self._identity())

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        """Count the step here, because Hypothesis would print an `@invariant` as a step of its own."""
        COUNTED["steps"] += 1
        super().check_invariants(*args, **kwargs)

    def teardown(self) -> None:
        """Run the final check, unless the history has failed, and attach its story to Hypothesis's report."""
        has_failed = sys.exc_info()[0] is not None
        try:
            if not has_failed and hasattr(self, "rotation"):
                self.quiet()
        finally:
            STORIES.update("\n".join(self.model.story).encode())
            # `note` works only inside a test of Hypothesis, not in a regression test.
            if currently_in_test_context():
                note("\n".join(self.model.story))


def histories_of(*rules: str, **begun_with: Any) -> type[Histories]:
    """Return a machine with only some of the rules, which generates a required order of them sooner.

    Args:
        rules: The names of the rules; all by default. Every history ends with `quiet` in any case.
        begun_with: Fixed arguments of `begin`; the others are generated.

    Returns:
        The machine.
    """
    marked = {name: getattr(getattr(Histories, name), RULE_MARKER, None) for name in dir(Histories)}
    known = {name: rule.function for name, rule in marked.items() if rule is not None}
    if unknown := (set(rules) - set(known)) | (set(begun_with) - set(BEGINNINGS)):
        raise ValueError(f"there is no {unknown}")
    taken = set(rules or known)
    # Keep those that are left out as plain methods, because other rules may call them.
    left_out = {name: function for name, function in known.items() if name not in taken}
    chosen: dict[str, Any] = BEGINNINGS | {name: st.just(value) for name, value in begun_with.items()}
    decorate: Callable[[Callable[..., None]], object] = initialize(**chosen)
    begin = decorate(getattr(Histories.begin, INITIALIZE_RULE_MARKER).function)
    return type("Histories", (Histories,), {**left_out, "begin": begin})
