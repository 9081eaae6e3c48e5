"""Histories by the thousand: a person, a scheduler and a malicious fate take turns, and the promises are watched.

The machine is Hypothesis' rule-based state machine over the model world.
A new capability joins it with a rule of its own (what may happen) and with a check of what it promises: in `watching`
where that holds after every effect, in `outcomes` where it holds after a run that succeeded.
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
    """One rotation's life in a hostile world."""

    @rule()
    def quiet(self) -> None:
        """Everything works again; one run by each owner of keys, and the invariants of convergence hold."""
        self.model.tell("quiet")
        begun = len(self.model.story)
        self.model.late_effects_happen()
        self.model.revoked_accounts.clear()
        self.model.deleted_connections.clear()
        self.model.longest_name = None
        self.model.late_writers = 0
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
        check_no_dead_key(self)
        # What is left there is a person's to decide.
        self.model.lists.clear()
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
        moved = self._rotate(self._identity())
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
            if not moved.succeeded:
                # The ledger was full, and has room now; what the other account holds is the next round's.
                moved = self._rotate(self._identity())

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
            STORIES.update("\n".join(self.model.story).encode())
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
