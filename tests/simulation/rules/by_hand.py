"""Rules for what people and consumers do to destinations, keys and the ledger."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from tasks.model.keys import without_marker
from tasks.model.ledger import Ledger
from tests.simulation.rules.history import History
from tests.simulation.strategies import (
    PLACES,
    amounts,
    nth,
    nth_of,
)
from tests.simulation.watching import FOREIGN


class ByHand(History):
    """Destinations, keys and the ledger are changed by hand."""

    @precondition(lambda self: self.model.keys)
    @rule(amount=amounts, which=nth)
    def spend(self, amount: Decimal, which: int) -> None:
        """A consumer uses any key of the rotation that works."""
        usable = [k for k in self.model.keys.values() if k.hash not in self.foreign and self.model.works(k.secret)]
        if not usable:
            return
        key = nth_of(usable, which)
        left = key.may_spend(self.model.time)
        spent = amount if left is None else min(amount, left)
        self.model.record(f"a consumer spends {spent} USD with {key.hash}")
        key.uses.append((self.model.time, spent))

    @rule(name=st.sampled_from(sorted(PLACES)), which=nth)
    def edit_a_destination(self, name: str, which: int) -> None:
        """A person writes something else into a destination: anything, or a key that was there before."""
        self._put_by_hand(name, nth_of([FOREIGN, *filter(None, self.versions[name])], which))

    @rule(name=st.sampled_from(sorted(name for name, versioned in PLACES.items() if versioned)))
    def edit_another_field(self, name: str) -> None:
        """A person changes another field of a secret."""
        self.model.record(f"by hand: another field of {name} is changed")
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
        """A person puts a superseded key back into a destination."""
        self._put_by_hand(nth_of(sorted(self.rotation.destinations), where), nth_of(self._former_keys(), which))

    def _former_keys(self) -> list[str]:
        former = [self.model.keys.get(key.hash) for key in self.last_ledger.superseded]
        return [key.secret for key in former if key and self.model.works(key.secret)]

    def _ours(self) -> list[str]:
        return sorted(set(self.model.keys) - set(self.foreign))

    @precondition(lambda self: self._ours())
    @rule(which=nth)
    def delete_a_key(self, which: int) -> None:
        """A person deletes one of the rotation's keys at OpenRouter."""
        # Otherwise a late write could publish a key that the person has just deleted.
        self.model.settle()
        chosen = self.model.keys.pop(nth_of(self._ours(), which))
        self.touched.add(chosen.hash)
        self.disabled.pop(chosen.hash, None)
        self.model.record(f"by hand: {chosen.hash} is deleted")
        self._stop_promising(chosen.secret)

    @precondition(lambda self: self._ours())
    @rule(which=nth)
    def disable_a_key(self, which: int) -> None:
        """A person disables one of the rotation's keys at OpenRouter."""
        self.model.settle()
        chosen = self.model.keys[nth_of(self._ours(), which)]
        chosen.disabled = True
        self.touched.add(chosen.hash)
        self.model.record(f"by hand: {chosen.hash} is disabled")
        self._stop_promising(chosen.secret)

    @precondition(lambda self: self._ours())
    @rule(which=nth, limit=st.sampled_from([None, Decimal(1), Decimal(500)]))
    def limit_a_key(self, which: int, limit: Decimal | None) -> None:
        """A person gives one of the rotation's keys another limit at OpenRouter."""
        chosen = self.model.keys[nth_of(self._ours(), which)]
        chosen.request = chosen.request.model_copy(update={"limit": limit})
        self.touched.add(chosen.hash)
        self.model.record(f"by hand: {chosen.hash} gets the limit {limit}")

    @precondition(lambda self: self._ours())
    @rule(which=nth, keeps_marker=st.booleans())
    def rename_a_key(self, which: int, keeps_marker: bool) -> None:
        """A person renames one of the rotation's keys; without its marker, only the ledger shows whose it is."""
        # A late write of the ledger could still record this key as the rotation's.
        self.model.settle()
        chosen = self.model.keys[nth_of(self._ours(), which)]
        name = chosen.request.name
        new = f"renamed {name}" if keeps_marker else without_marker(name)
        chosen.request = chosen.request.model_copy(update={"name": new})
        self.model.record(f"by hand: {chosen.hash} is renamed {new}")
        self._let_go_of_kept_keys()

    @rule()
    def delete_the_ledger(self) -> None:
        """A person deletes the ledger's variable."""
        self.model.record("by hand: the ledger is deleted")
        self.model.settle()
        self.model.variables.clear()
        self._begin_to_watch(Ledger())
        self._lose_sight()
        self._let_go_of_kept_keys()

    @precondition(lambda self: self._settled_ledgers())
    @rule(which=nth)
    def put_an_old_ledger_back(self, which: int) -> None:
        """A person restores an earlier value of the ledger's variable."""
        self.model.settle()
        value = nth_of(self._settled_ledgers(), which)
        self.model.put_ledger("checkout", value)
        self._begin_to_watch(Ledger.model_validate(value))
        self.model.record(f"by hand: the ledger is what it was at revision {self.last_ledger.revision}")
        recorded = self.last_ledger.hashes()
        # Exclude Retries of earlier runs: a marker names only its run, so a Retry could not tell its keys apart.
        self.runs.clear()
        # Only an audit can find keys made since then. Keys that the rotation gave away since then are its own again.
        self.out_of_sight |= set(self.model.keys) - recorded
        self.foreign = {key: settings for key, settings in self.foreign.items() if key not in recorded}
        self._let_go_of_kept_keys()

    def _begin_to_watch(self, ledger: Ledger) -> None:
        """Continue the checks from this ledger; what it does not contain, no run can know."""
        self.last_ledger = ledger
        self.disabled.clear()
        self.announced.clear()
        self.left.clear()
        if ledger.removed:
            # The keys of a removed rotation are revoked even where a destination holds them.
            self.serving.clear()
        # Nor can a run take a deleted key out of a list if this ledger does not contain it.
        self.touched |= set(self.made.values()) - set(self.model.keys) - ledger.hashes()

    def _settled_ledgers(self) -> list[dict[str, Any]]:
        """Return the earlier ledgers in which nothing is pending or unresolved."""
        return [value for value in self.ledgers if not value.get("pending") and not value.get("unresolved")]
