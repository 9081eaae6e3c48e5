"""One rotation, with the people and the runs that act on it; the base class of all rules."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    rule,
)

from blocks.openrouter.keys import KeyRequest
from tasks.model.decisions import Identity
from tasks.model.keys import read_marker
from tasks.model.rotation import KeySettings, Retirement, Rotation
from tasks.steps import PLAIN, Steps
from tests.simulation.outcomes import MOST_TAKEN_UP, is_ours
from tests.simulation.promises import promise
from tests.simulation.runs import (
    Ended,
    play,
    run_protocol,
)
from tests.simulation.strategies import (
    BEGINNINGS,
    Aim,
    hits,
)
from tests.simulation.watching import COUNTED, Watched
from tests.simulation.world.fates import Fate
from tests.simulation.world.process import Process

Planned = list[tuple[Aim, Fate]]
"""The faults of a run: which effects fail, and how."""


class History(Watched):
    """The state of a history, and what the rules share."""

    steps: Steps = PLAIN

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Identity] = []
        self.completed: set[UUID] = set()
        self.removals: list[tuple[Identity, datetime | None, bool]] = []
        """Each removal: its run, when its keys must end, and whether it has completed."""
        self.numbers = 0
        self.touched: set[str] = set()

    @initialize(
        names=BEGINNINGS["names"],
        overlap=BEGINNINGS["overlap"],
        retirement=BEGINNINGS["retirement"],
        key=BEGINNINGS["key"],
        minimum_age=BEGINNINGS["minimum_age"],
        adopts=BEGINNINGS["adopts"],
    )
    def begin(
        self,
        names: list[str],
        overlap: timedelta,
        retirement: Retirement,
        key: dict[str, Any],
        minimum_age: timedelta,
        adopts: bool,
    ) -> None:
        """A person fills in the form, for a new key or to adopt one."""
        self.rotation = Rotation(
            name="checkout",
            connection="openrouter",
            key=KeySettings(name="checkout service", limit_usd=50, **key),
            destinations=names,
            overlap=overlap,
            retirement=retirement,
            minimum_age=minimum_age,
        )
        self.model.deployments["checkout"] = self.rotation
        if adopts:
            self.adopt_or_not(adopt=True)

    def _fate(self, planned: Planned) -> None:
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

    def _other_identity(self) -> Identity:
        """Return the identity of a run that is not a rotation, which the rule `retry` must not use."""
        self.numbers += 1
        return Identity(UUID(int=10**6 + self.numbers), self.model.time)

    def _rotate(self, identity: Identity, process: Process | None = None) -> Ended:
        self.hurried = identity.emergency
        self.ended_where_left.clear()
        ended = play(run_protocol(self.model, self.rotation, identity, process, self.steps))
        self._after(ended)
        if ended.succeeded:
            self.completed.add(identity.id)
        return ended

    def _after(self, ended: Ended) -> None:
        COUNTED["runs"] += 1
        self.model.record(f"    {ended}")
        said = f"{ended.message} {ended.error!r}"
        promise(not any(secret in said for secret in self.made), "I3: a key is in a message")
        self.model.fate = lambda _effect: Fate.WORKS

    def _current(self) -> str | None:
        """Return the hash of the current key, if the ledger names one and it still exists."""
        ledger = self.model.ledger("checkout")
        return ledger.current.hash if ledger and ledger.current and ledger.current.hash in self.model.keys else None

    def _change(self, **changes: Any) -> None:
        self.rotation = self.rotation.model_copy(update=changes)
        self.model.deployments["checkout"] = self.rotation

    def _lose_sight(self) -> None:
        # If the ledger is lost, a run can find only keys in the account that the rotation uses, and only if a new
        # ledger has room for all of them. An audit deals with the others.
        if self.model.ledger("checkout") is None:
            used = self.model.connections[self.rotation.connection]
            found = {key.hash for key in self.model.keys.values() if key.account == used and is_ours(self.model, key)}
            self.out_of_sight |= {key.hash for key in self.model.keys.values() if key.account != used}
            self.out_of_sight |= found if len(found) > MOST_TAKEN_UP else set()

    def _fill_the_form_in_anew(self) -> None:
        self.model.deployments["checkout"] = self.rotation
        self._let_go_of_kept_keys()

    def _let_go_of_kept_keys(self) -> None:
        # A key without a marker is foreign, unless the ledger contains it or a run may adopt it.
        recorded = self.last_ledger.hashes() | {self.rotation.adopt}
        for key in self.model.keys.values():
            if read_marker(key.request.name) is None and key.hash not in recorded:
                self.foreign.setdefault(key.hash, key.settings())
                self.made.pop(key.secret, None)
                self._stop_promising(key.secret)

    def _stop_promising(self, secret: str) -> None:
        """Stop checking the destinations that hold a key which a person has changed."""
        self.left = {address: key for address, key in self.left.items() if key != self.made.get(secret)}
        self.serving -= {name for name, place in self.model.places.items() if place.content == secret}

    @rule(adopt=st.booleans())
    def adopt_or_not(self, adopt: bool) -> None:
        """A person names a key to adopt, or none; it matters only while the rotation has no current key."""
        hash_ = None
        if adopt and self.rotation.adopt is None:
            account = self.model.connections[self.rotation.connection]
            key = self.model.add_key(f"adopted-{self.model.fresh()}", KeyRequest(name="made by a person"), account)
            hash_ = key.hash
            place = self.model.places[self.rotation.destinations[0]]
            if place.content is None:
                self._put_by_hand(self.rotation.destinations[0], key.secret)
        self.model.record(f"by hand: the rotation adopts {hash_}")
        self._change(adopt=hash_)

    def _put_by_hand(self, name: str, content: str | None) -> None:
        self.model.record(f"by hand: {name} is set to {content}")
        self.model.places[name].versions.append(content)
        self.versions[name].append(content)
        self._promise_what_works(name)

    def _promise_what_works(self, name: str) -> None:
        # Nothing is promised about a dead key, or a key of a removed rotation, that a person puts in.
        content = self.model.places[name].content
        works = content in self.made and self.model.works(content) and not self.last_ledger.removed
        works = works and (self.model.places[name].exists or self.made[content or ""] == self._current())
        (self.serving.add if works and self._is_recorded(content) else self.serving.discard)(name)

    def _is_recorded(self, secret: str | None) -> bool:
        return self.made.get(secret or "") in self.last_ledger.hashes()
