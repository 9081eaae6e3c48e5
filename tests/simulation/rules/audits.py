"""Rules for audits, with and without repair."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from tasks.audit.unrecorded import MAY_STILL_RUN_FOR
from tasks.model.ledger import Ledger
from tests.simulation import outcomes
from tests.simulation.invariants import check_agreement
from tests.simulation.outcomes import Before
from tests.simulation.promises import promise
from tests.simulation.rules.by_hand import ByHand
from tests.simulation.rules.history import Planned
from tests.simulation.runs import (
    Audited,
    play,
    run_audit,
)
from tests.simulation.strategies import (
    fates,
)
from tests.simulation.watching import COUNTED


class Audits(ByHand):
    """Audits of a connection, with and without repair."""

    @rule(planned=st.just([]) | fates, connection=st.sampled_from(["openrouter", "other"]), repair=st.booleans())
    def audit(self, planned: Planned, connection: str, repair: bool) -> None:
        """An audit runs, with or without repair."""
        self.model.record(f"an audit of {connection} starts{' with repair' if repair else ''}")
        protected, ledgers = self._out_of_reach(), json.dumps(self.model.ledgers())
        before = Before.of(self.model)
        everything = {key.hash: key.settings() for key in self.model.keys.values()}
        orphans = outcomes.orphans(self.model, before.ledger, self.model.connections[connection])
        self._fate(planned)
        audited = self._audit(connection, repair=repair)
        may_look = not planned and connection not in self.model.deleted_connections
        may_look = may_look and self.model.connections[connection] not in self.model.revoked_accounts
        if audited.report and may_look and not repair:
            outcomes.check_findings(self.model, connection, audited.report.findings, before.events)
        after = {key.hash: key.settings() for key in self.model.keys.values()}
        held = {name: place.content for name, place in self.model.places.items()}
        promise(before.held == held, "an audit wrote a destination")
        promise(repair or after == everything, "an audit without repair changed a key")
        promise(repair or json.dumps(self.model.ledgers()) == ledgers, "an audit without repair wrote a ledger")
        promise(protected.items() <= after.items(), "a repair changed a key that it must not touch")
        restored = ledgers == "{}" and self._current() is not None
        taken_up = repair and self._has_taken_up(orphans, before)
        promise(restored or taken_up or self._says_the_same(ledgers), "a repair changed a ledger")
        if restored:
            COUNTED["restored ledgers"] += 1
            check_agreement(self.model, self.rotation)

    def _has_taken_up(self, orphans: Collection[str], before: Before) -> bool:
        """Return whether a repair has only added orphans to the ledger."""
        ledger = self.model.ledger("checkout") or Ledger()
        added = ledger.hashes() - before.ledger.hashes()
        if ledger.current != before.ledger.current:
            promise(ledger.current is not None and ledger.current.hash in added, "a repair made no orphan current")
            check_agreement(self.model, self.rotation)
        return bool(added) and added <= set(orphans) and before.ledger.hashes() <= ledger.hashes()

    def _says_the_same(self, ledgers: str) -> bool:
        # A repair takes the ledger over, to keep other runs from writing; that changes only its signature.
        signature = dict.fromkeys(("revision", "writer", "package"))
        before = {name: {**value, **signature} for name, value in json.loads(ledgers).items()}
        return {name: {**value, **signature} for name, value in self.model.ledgers().items()} == before

    @precondition(lambda self: self._is_simple())
    @rule(planned=fates)
    def audit_after_the_ledger_was_lost(self, planned: Planned) -> None:
        """A person deletes the ledger of a rotation with one key, and runs an audit with repair."""
        current, certain = self._current(), not planned and self._is_beyond_doubt()
        self.delete_the_ledger()
        self.model.time += timedelta(hours=2)
        self.audit(planned, self.rotation.connection, repair=True)
        promise(not certain or self._current() == current, "an audit did not write a lost ledger anew")

    def _is_simple(self) -> bool:
        ledger = self.model.ledger("checkout")
        return ledger is not None and ledger.current is not None and not (ledger.superseded or ledger.pending)

    def _is_beyond_doubt(self) -> bool:
        """Return whether a lost ledger can be restored: the rotation's only key works at all its destinations."""
        key = self.model.keys.get(self._current() or "")
        account = self.model.connections[self.rotation.connection]
        reachable = self.rotation.connection not in self.model.deleted_connections
        reachable = reachable and account not in self.model.revoked_accounts
        if key is None or key.account != account or not reachable or self.model.late:
            return False
        places = [self.model.places[name] for name in self.rotation.destinations]
        known = [k for k in self.model.keys.values() if k.account == account and outcomes.is_ours(self.model, k)]
        readable = all(place.exists and place.content == key.secret for place in places)
        lasts = not key.expired(self.model.time + timedelta(hours=3)) and not key.disabled
        # After a clock was set back, the key is younger than an audit requires before it decides.
        settled = self.model.time + timedelta(hours=2) - key.created_at > MAY_STILL_RUN_FOR
        return readable and lasts and settled and known == [key]

    def _out_of_reach(self) -> dict[str, Any]:
        """Return the keys that no repair may change: in a ledger, held, foreign, young, or in use."""
        ledger = self.model.ledger("checkout")
        recorded = ledger.hashes() if ledger else set()
        places = {*self.rotation.destinations, *(ledger.current.destinations if ledger and ledger.current else ())}
        held = {self.model.places[name].content for name in places}
        return {
            key.hash: key.settings()
            for key in self.model.keys.values()
            if key.hash in recorded
            or key.hash in self.foreign
            or key.secret in held
            or self.model.time - key.created_at <= MAY_STILL_RUN_FOR
            or (key.uses and self.model.works(key.secret))
        }

    def _audit(self, connection: str, *, repair: bool) -> Audited:
        audited = play(run_audit(self.model, connection, self._other_identity(), repair=repair))
        self._after(audited.ended)
        findings = audited.report.findings if audited.report else ()
        COUNTED["findings"] += len(findings)
        COUNTED["repairs"] += sum(finding.repaired for finding in findings)
        return audited
