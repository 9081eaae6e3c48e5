"""Rules for people who change the rotation, its connections and its blocks."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from tasks.model.rotation import Retirement
from tests.simulation.rules.history import History
from tests.simulation.strategies import (
    MOVABLE,
    PLACES,
    destinations,
    key_settings,
    minimum_ages,
    overlaps,
    retirements,
)
from tests.simulation.world.places import Place


class Settings(History):
    """The rotation, its connections and its blocks are changed."""

    def __init__(self) -> None:
        super().__init__()
        self.places_left: dict[str, list[Place]] = {name: [] for name in PLACES}

    @rule(names=destinations, overlap=overlaps, limit=st.sampled_from([50, 75]))
    def change_the_rotation(self, names: list[str], overlap: timedelta, limit: int) -> None:
        """A person changes destinations, overlap and limit."""
        self.model.record(f"by hand: the rotation now goes to {names}, overlap {overlap}, limit {limit}")
        # Nothing is promised about a new destination until a run has published to it.
        self.serving -= set(names) - set(self.rotation.destinations)
        key = self.rotation.key.model_copy(update={"limit_usd": Decimal(limit)})
        self._change(destinations=names, overlap=overlap, key=key)

    @rule(names=destinations)
    def permit_to_overwrite(self, names: list[str]) -> None:
        """A person names the only destinations whose foreign values a run may overwrite."""
        self.model.record(f"by hand: the rotation may overwrite {names}")
        self._change(overwrite=names)

    @rule(retirement=retirements, minimum_age=minimum_ages)
    def change_the_policies(self, retirement: Retirement, minimum_age: timedelta) -> None:
        """A person changes the retirement policy and the minimum age."""
        self.model.record(f"by hand: the retirement is now {retirement!r}, the minimum age {minimum_age}")
        self._change(retirement=retirement, minimum_age=minimum_age)

    @rule(changes=key_settings)
    def change_the_key(self, changes: dict[str, Any]) -> None:
        """A person changes the settings of new keys."""
        self.model.record(f"by hand: the key's settings are now {changes}")
        self._change(key=self.rotation.key.model_copy(update=changes))

    @rule(connection=st.sampled_from(["openrouter", "other"]))
    def change_the_connection(self, connection: str) -> None:
        """A person changes the rotation's connection."""
        self.model.record(f"by hand: the rotation now uses the connection {connection}")
        self._change(connection=connection)
        self._lose_sight()

    @precondition(lambda self: self._nothing_is_open())
    @rule(account=st.sampled_from(["account-1", "account-2"]))
    def exchange_the_management_key(self, account: str) -> None:
        """A person puts the management key of another account into the same connection."""
        self.model.record(f"by hand: the connection openrouter now belongs to {account}")
        self.model.connections["openrouter"] = account
        self._lose_sight()

    def _nothing_is_open(self) -> bool:
        # A create of unknown outcome can be settled only in the account in which it was made.
        ledger = self.model.ledger("checkout")
        return not self.model.late and (ledger is None or not (ledger.pending or ledger.unresolved))

    @rule(account=st.sampled_from(["account-1", "account-2"]), revoked=st.booleans())
    def revoke_the_management_key(self, account: str, revoked: bool) -> None:
        """A management key is revoked, or replaced."""
        self.model.record(f"the management key of {account} {'is revoked' if revoked else 'works'}")
        (self.model.revoked_accounts.add if revoked else self.model.revoked_accounts.discard)(account)

    @rule(name=st.sampled_from(sorted(PLACES)), exists=st.booleans())
    def remove_a_block(self, name: str, exists: bool) -> None:
        """A destination's block is deleted, or created again."""
        self.model.record(f"by hand: the block {name} {'exists' if exists else 'is deleted'}")
        self.model.places[name].exists = exists
        # Without its block, a destination cannot be read, and a run only knows that it published the current key there.
        if not exists and self.made.get(self.model.places[name].content or "") != self._current():
            self.serving.discard(name)

    @rule(name=st.sampled_from(sorted(MOVABLE)), back=st.booleans())
    def edit_a_block(self, name: str, back: bool) -> None:
        """A destination's block is edited to point to another place, or recreated there."""
        former, others = self.model.places[name], self.places_left[name]
        place = others.pop() if back and others else self._place(name, f"place {self.model.fresh()} of {name}")
        others.append(former)
        self.model.record(f"by hand: the block {name} points to {place.at}, and no longer to {former.at}")
        place.exists = former.exists
        self.model.places[name] = place
        self.versions[name], self.fields[name] = list(place.versions), dict(place.other_fields)
        self.serving.discard(name)
        self.left.pop(place.at, None)
        if (key := self._published_at(name, former)) is not None:
            self.left[former.at] = key

    def _published_at(self, name: str, place: Place) -> str | None:
        """Return the current or pending key, if the place holds it and the ledger names this place for it."""
        ledger = self.last_ledger
        current, pending = ledger.current, ledger.pending and ledger.pending.key
        for key, where in ((current, current.where() if current else {}), (pending, ledger.where_pending())):
            found = self.model.keys.get(key.hash) if key else None
            if found and not found.disabled and found.secret == place.content and where.get(name) == place.at:
                return found.hash
        return None

    @rule(name=st.sampled_from(["openrouter", "other"]), exists=st.booleans())
    def delete_a_connection(self, name: str, exists: bool) -> None:
        """A connection's block is deleted, or created again."""
        self.model.record(f"by hand: the connection {name} {'exists' if exists else 'is deleted'}")
        (self.model.deleted_connections.discard if exists else self.model.deleted_connections.add)(name)
