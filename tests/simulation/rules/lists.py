"""Rules for people who edit the account's lists of keys, and the check that no list keeps a dead key."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from blocks.openrouter.lists import ListKind
from tests.simulation.promises import promise
from tests.simulation.rules.history import History
from tests.simulation.strategies import nth, nth_of
from tests.simulation.world.lists import ModelList


class Lists(History):
    """People restrict credentials and destinations to certain keys."""

    @precondition(lambda self: self._current())
    @rule(kind=st.sampled_from(list(ListKind)), with_others=st.booleans())
    def restrict_to_the_current_key(self, kind: ListKind, with_others: bool) -> None:
        """A person restricts a credential or a destination to the current key, alone or with foreign keys."""
        current = self.model.keys[self._current() or ""]
        others = [key for key in self.foreign if self.model.keys[key].account == current.account]
        hashes = (*(others if with_others else ()), current.hash)
        which = ModelList(f"list-{self.model.fresh()}", kind, current.account, hashes)
        self.model.lists[which.id] = which
        self.model.record(f"by hand: {which.id} is for {', '.join(hashes)} only")

    @precondition(lambda self: self.model.lists)
    @rule(which=nth)
    def open_to_every_key(self, which: int) -> None:
        """A person lifts a restriction."""
        chosen = nth_of(list(self.model.lists.values()), which)
        chosen.hashes = None
        self.model.record(f"by hand: {chosen.id} is for every key")

    @precondition(lambda self: self.model.lists)
    @rule(which=nth)
    def take_a_key_out(self, which: int) -> None:
        """A person takes the last key out of a list that names several."""
        chosen = nth_of(list(self.model.lists.values()), which)
        if chosen.hashes and len(chosen.hashes) > 1:
            chosen.hashes = chosen.hashes[:-1]
            self.model.record(f"by hand: the last key of {chosen.id} is taken out")

    @rule()
    def somebody_writes_at_the_same_moment(self) -> None:
        """A concurrent writer, who has read a list before, undoes its next change."""
        self.model.late_writers = 1


def check_no_dead_key(history: History) -> None:
    """Check that no list names a key that a run has revoked, unless it names no live key at all.

    Keys that a person has changed by hand are exempt, and lists that the rotation was not able to read or change.
    """
    ended = set(history.made.values()) - set(history.model.keys) - history.touched - set(history.foreign)
    live = {key for key, found in history.model.alive().items() if not found.expired(history.model.time)}
    for which in history.model.lists.values():
        dead = ended & set(which.hashes or ())
        # OpenRouter accepts neither a list with a dead key nor an empty one.
        alone = not live & set(which.hashes or ())
        promise(
            not dead or alone or which.spoiled, f"{which.id} names {', '.join(sorted(dead))}, which a run has ended"
        )
