"""The entries of a ledger: keys in each state, creates of unknown outcome, and the last emergency."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.model.keys import INSTALLATION_LENGTH
from tasks.model.places import is_same, left_places
from tasks.model.terms import Terms
from tasks.model.times import Moment

Installation = Annotated[str, Field(pattern=rf"^([a-z]{{{INSTALLATION_LENGTH}}})?$")]
"""The installation's id in new markers, by which a lost key is found again; empty until this version creates a key."""


class Entry(BaseModel):
    """An entry of the ledger. An unknown field is refused, because dropping it could lose information."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MadeKey(Entry):
    """A key of this rotation.

    `fingerprint` is empty if the key was found by its marker after its ledger was lost; `made_by` is empty if it was
    adopted. `left_at` lists former places, to which the rotation no longer publishes, that may still hold it.
    """

    hash: str
    label: str
    fingerprint: str
    made_by: UUID | None = None
    connection: str
    workspace_id: str | None = None
    left_at: tuple[str, ...] = ()

    def as_payload(self) -> dict[str, str]:
        """Return the key as the payload of an event, without its fingerprint."""
        return {"key_label": self.label, "key_hash": self.hash, "connection": self.connection}

    def leaving(self, was: Mapping[str, str], places: Mapping[str, str]) -> Self:
        """Return the key with the former places that it gets once its rotation publishes elsewhere.

        Args:
            was: Where each destination pointed when the key was published.
            places: Where each one points now.
        """
        left = dict.fromkeys((*self.without_returned_places(places).left_at, *left_places(was, places)))
        return self.model_copy(update={"left_at": tuple(left)})

    def without_returned_places(self, places: Mapping[str, str]) -> Self:
        """Return the key without those former places to which its rotation publishes again."""
        now = [*places, *places.values()]
        left = tuple(place for place in self.left_at if not any(is_same(place, other) for other in now))
        return self.model_copy(update={"left_at": left})


class Budget(Entry):
    """A limit that is temporarily lower, because former keys have spent part of it.

    `ends_at` is when the full limit applies again; `None` if the limit has no reset.
    """

    carried: Decimal
    ends_at: Moment | None = None

    def runs(self, now: datetime) -> bool:
        """Return whether the former keys' spending still counts."""
        return self.ends_at is None or now < self.ends_at


class Placed(Entry):
    """A key's destinations, and the places to which they pointed (`kept_places`)."""

    destinations: tuple[str, ...]
    places: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _places_belong_to_destinations(self) -> Self:
        if self.places and len(self.places) != len(self.destinations):
            raise ValueError("there must be a place for each destination, or none at all")
        return self

    def where(self) -> dict[str, str]:
        """Return where each destination pointed; empty if the block itself is the place, or if it is unknown."""
        return dict(zip(self.destinations, self.places or ("",) * len(self.destinations), strict=True))


class Current(MadeKey, Placed):
    """The key that every destination holds.

    `terms` hold the full limit, even while a carried budget lowers it at OpenRouter. Until `late_until`, a write of the
    key with an unknown outcome may still take effect. `inherits` tells whether it has joined its predecessors' lists.
    """

    since: Moment
    rotated_by: UUID | None = None
    terms: Terms | None = None
    budget: Budget | None = None
    late_until: Moment | None = None
    inherits: bool = False

    @property
    def expires_at(self) -> datetime | None:
        """When OpenRouter lets the key expire; `None` if never, or if an earlier version has not recorded it."""
        return self.terms.expires_at if self.terms else None

    @property
    def is_adopted(self) -> bool:
        """Whether this is an existing key that was adopted, and that no rotation has replaced yet."""
        return self.made_by is None and self.rotated_by is None


class Superseded(MadeKey):
    """A former key, alive until it is revoked.

    `revoke_at` is when its revocation is next considered: at the end of the overlap, of a postponement, or of its time
    as a disabled key. `revoking` announces the call that disables or deletes it, until its outcome is known.
    `capped` tells, for a carried budget, whether its limit was lowered to what it has spent.
    """

    since: Moment | None = None
    overlap_ends: Moment | None = None
    revoke_at: Moment
    at_once: bool = False
    revoking: bool = False
    disabled: bool = False
    postponed: int = 0
    usage: Decimal | None = None
    usage_since: Moment | None = None
    budget: Budget | None = None
    capped: bool | None = None
    late_until: Moment | None = None


class Pending(Placed):
    """A key that is about to be created, or that was created and is not current yet.

    If its places are those of the current key, they are stored only there.
    """

    run_id: UUID
    connection: str
    workspace_id: str | None = None
    intended_at: Moment
    terms: Terms | None = None
    budget: Budget | None = None
    key: MadeKey | None = None
    late_writes: timedelta | None = None


class Unresolved(Entry):
    """A create with an unknown outcome whose key was not found, but may still turn up.

    A run's keys share one marker, so its creates in one workspace share one entry: `since` is when the latest was made,
    and `several` tells whether there were others, so that the key of one may be found before that of another.
    """

    run_id: UUID
    connection: str
    workspace_id: str | None = None
    since: Moment
    several: bool = False

    def covers(self, intent: Pending) -> bool:
        """Return whether the key of an intent would be found by the same search."""
        same = intent.run_id, intent.connection, intent.workspace_id
        return same == (self.run_id, self.connection, self.workspace_id)


class Emergency(Entry):
    """The last emergency that published its key, and the time at which it made every older key due."""

    run_id: UUID
    at: Moment
