"""The checks after every effect of any history: I1, I3, I4, I7, and the permitted changes of keys and ledgers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine

from blocks.openrouter.keys import KeyRequest
from tasks.model.keys import marker
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.model.room import size
from tasks.model.rotation import Retirement, Rotation
from tasks.model.states import TRANSITIONS, steps_between
from tests.simulation.invariants import check_serving
from tests.simulation.promises import promise
from tests.simulation.strategies import PLACES
from tests.simulation.world.keys import ModelKey
from tests.simulation.world.model import Model
from tests.simulation.world.places import Place

COUNTED: Counter[str] = Counter()
"""What the histories of this process did, for the summary."""
STORIES = hashlib.sha256()
"""A digest of their stories, which is equal for two simulations with the same seed."""


FOREIGN = "postgresql://user:password@db/checkout"
"""A value in a destination that is not an OpenRouter key."""


NEARLY_FULL = 4_000
"""A ledger above this size, in bytes, may have no room for former places."""


class Watched(RuleBasedStateMachine):
    """A world with one rotation, and the promises that hold after every effect."""

    rotation: Rotation

    def __init__(self) -> None:
        super().__init__()
        COUNTED["histories"] += 1
        self.model = Model()
        self.model.connections = {"openrouter": "account-1", "other": "account-2"}
        self.fields = {name: {"username": "someone"} if versioned else {} for name, versioned in PLACES.items()}
        self.model.places = {name: self._place(name, f"the place of {name}") for name in PLACES}
        self.model.watch = self.watch
        self.made: dict[str, str] = {}
        self.serving: set[str] = set()
        self.versions: dict[str, list[str | None]] = {name: [] for name in PLACES}
        self.foreign = self._foreign_keys()
        self.last_ledger = Ledger()
        self.last_stored: Any = None
        self.told = 0
        self.ledgers: list[dict[str, Any]] = []
        self.last_alive: dict[str, tuple[ModelKey, int]] = {}
        """The keys that were live after the last effect, and how often they had been used by then."""
        self.announced: dict[str, tuple[datetime, Retirement]] = {}
        self.disabled: dict[str, tuple[datetime, timedelta]] = {}
        self.left: dict[str, str] = {}
        """Keys published to a place to which no block points any more: the place's address, and the key's hash."""
        self.ended_where_left: list[str] = []
        self.restoring = False
        """Whether a restore is at work."""
        self.interleaved = False
        """Whether several runs are at work, of any kind."""
        self.hurried = False
        self.taken_away = False
        self.out_of_sight: set[str] = set(self.foreign)

    def _place(self, name: str, at: str) -> Place:
        # Prefect's own block is itself the place.
        at = "" if name.startswith("secret/") else at
        return Place(checks_and_sets=PLACES[name], other_fields=dict(self.fields[name]), at=at)

    def _foreign_keys(self) -> dict[str, Any]:
        # Two keys of other installations whose rotation has the same name, and one key of another rotation.
        foreign = (("account-1", "checkout", ""), ("account-2", "other", ""), ("account-1", "checkout", "another"))
        for number, (account, rotation, installation) in enumerate(foreign):
            name = f"not ours {marker(rotation, UUID(int=10**9 + number), installation)}"
            self.model.add_key(f"foreign-{number}", KeyRequest(name=name), account)
        return {key.hash: key.settings() for key in self.model.keys.values()}

    def watch(self, effect: str) -> None:
        """Check what holds after every effect."""
        COUNTED["effects"] += 1
        self.made.update({key.secret: key.hash for key in self.model.keys.values()})
        self._watch_destinations(effect)
        self._watch_secrets(effect)
        self._watch_retirement(effect)
        self._watch_left(effect)
        if "ledger" in effect:
            self._watch_ledger(effect)
        untouched = {h: self.model.keys[h].settings() for h in self.foreign if h in self.model.keys}
        promise(untouched == self.foreign, f"I4: a foreign key was changed by: {effect}")

    def _watch_secrets(self, effect: str) -> None:
        stored, told = next(reversed(self.model.variables.values()), None), self.model.events[self.told :]
        if told or stored is not self.last_stored:
            self.last_stored, self.told = stored, len(self.model.events)
            seen = json.dumps([stored, told])
            promise(not any(secret in seen for secret in self.made), f"I3: a key was stored or told by: {effect}")

    def _watch_destinations(self, effect: str) -> None:
        for name, place in self.model.places.items():
            seen = self.versions[name]
            promise(place.other_fields == self.fields[name], f"I7: {name} lost a field by: {effect}")
            if place.versions != seen:
                promise(place.versions[: len(seen)] == seen, f"I7: {name} lost a version")
                if place.content != (seen[-1] if seen else None):
                    self._watch_new_content(name, place, effect)
                self.versions[name] = list(place.versions)
        check_serving(self.model, self.rotation, self.serving, effect)

    def _watch_new_content(self, name: str, place: Place, effect: str) -> None:
        if self.taken_away or name not in self.rotation.destinations:
            # A very late write can still reach a destination that the rotation no longer has.
            return
        seen, current = self.versions[name], self.last_ledger.current
        where = current.where() if current else {}
        permitted = {
            *self.rotation.overwrite,
            *(one for one, at in where.items() if at in ("", self.model.places[one].at)),
        }
        # A very late write can replace what was put there since.
        lost = seen and seen[-1] == FOREIGN and name not in permitted and not effect.startswith("late")
        promise(not lost, f"{name} lost a value that is no key and that nobody has given up, by: {effect}")
        promise(self.model.serves(place.content), f"I1: {name} was given what is no working key by: {effect}")
        capped = {key.hash for key in self.last_ledger.superseded if key.capped}
        late = effect.startswith("late")
        promise(
            not late or self.made.get(place.content or "") not in capped, f"{name} was given a capped key by: {effect}"
        )
        self.serving.add(name)
        # A restored key takes the places of the key that it replaces, even if rotations do not inherit.
        relaxed = self.interleaved or self.hurried or not (self.restoring or self.rotation.key.inherit)
        if effect == f"write {name}" and not relaxed:
            self._watch_places(self._key(place.content), effect)
        wanted = self.rotation.key.guardrail_id
        if wanted and effect == f"write {name}" and not (self.restoring or self.interleaved):
            promise(self._key(place.content).guardrail == wanted, f"{name} was given a key without its guardrail")

    def _watch_places(self, key: ModelKey, effect: str) -> None:
        current = self.last_ledger.current
        for which in self.model.lists.values():
            if current and current.hash in (which.hashes or ()) and which.account == key.account and not which.spoiled:
                promise(key.hash in (which.hashes or ()), f"a key that is not in {which.id} was published by: {effect}")

    def _key(self, secret: str | None) -> ModelKey:
        key = self.model.key_of(secret)
        assert key is not None
        return key

    def _watch_ledger(self, effect: str) -> None:
        value = self.model.ledgers().get("checkout")
        now = self.model.read(value) if value else Ledger()
        strange = steps_between(self.last_ledger, now) - TRANSITIONS.keys() if now is not self.last_ledger else ()
        promise(not strange, f"a key went from one state to another that it may not: {strange}")
        if now.removed:
            # The keys of a removed rotation cannot be restored, even if the rotation is added again.
            self.disabled.clear()
        before = {key.hash: key for key in self.last_ledger.superseded}
        if effect.startswith("late"):
            # A late write of the ledger, prepared before a block was edited, cannot name the former place.
            given_up = {key.hash for key in now.superseded if key.hash not in before}
            self.left = {address: key for address, key in self.left.items() if key not in given_up}
        for key in now.superseded:
            former = before.get(key.hash)
            if key.revoking and not (former and former.revoking):
                self.announced[key.hash] = (self.model.time, now.retirement)
            # Count from the ledger write: if a run dies before it, the next run applies the policy of its own time.
            if key.disabled and not (former and former.disabled):
                self.disabled[key.hash] = (self.model.time, now.retirement.disabled_for)
        if value is not None and (not self.ledgers or (self.ledgers[-1] is not value and self.ledgers[-1] != value)):
            self.ledgers.append(value)
        self.last_ledger = now

    def _watch_retirement(self, effect: str) -> None:
        """Check that a superseded key ends as the policy requires, except in an emergency or a removal."""
        alive = self.model.alive()
        ended = {key: found.seen_uses(n) for key, (found, n) in self.last_alive.items() if key not in alive}
        self.last_alive = {key: (found, len(found.uses)) for key, found in alive.items()}
        if self.disabled:
            self.disabled = {key: since for key, since in self.disabled.items() if key not in alive}
        if not effect.endswith("OpenRouter") or self.last_ledger.removed:
            return
        for key in self.last_ledger.superseded:
            if not key.at_once:
                self._watch_disabled(key)
            if not key.at_once and key.hash in ended:
                self._watch_ended(key, ended[key.hash], effect)

    def _watch_left(self, effect: str) -> None:
        """Check that a key at a former place ends only when it is due and the ledger names that place."""
        if not self.left:
            return
        if self.last_ledger.removed or size(self.last_ledger) > NEARLY_FULL:
            self.left.clear()
        superseded = {key.hash: key for key in self.last_ledger.superseded}
        for address, key_hash in [*self.left.items()]:
            if key_hash in self.model.alive():
                continue
            entry = superseded.get(key_hash)
            told = entry is not None and address in entry.left_at and entry.revoke_at <= self.model.time
            promise(told, f"I1: {address} was left with a key that ended before it was said, by: {effect}")
            self.ended_where_left.append(address)
            del self.left[address]

    def _watch_disabled(self, key: Superseded) -> None:
        if key.hash in self.disabled and key.hash not in self.model.keys:
            since, long_enough = self.disabled.pop(key.hash)
            waited = self.model.time - since
            promise(waited >= long_enough, f"a disabled key could be restored for {waited} only")

    def _watch_ended(self, key: Superseded, uses: list[tuple[datetime, Decimal]], effect: str) -> None:
        policy = self.last_ledger.retirement
        if policy.revoke == "disable-then-delete":
            promise(key.hash in self.model.keys, f"a key that could be restored was gone after: {effect}")
        # An announced revocation cannot be withdrawn: a later use changes nothing.
        decided, policy = self.announced.get(key.hash, (self.model.time, policy))
        if policy.retire_when != "unused":
            return
        overlap_ended = key.overlap_ends or key.revoke_at
        last_use = max([overlap_ended, *(at for at, _ in uses if at <= decided)])
        waited = decided >= (key.since or overlap_ended) + policy.max_overlap
        if policy.on_still_used == "keep" or not waited:
            promise(decided - last_use >= policy.quiet_time, f"a key was revoked although it is used: {effect}")
