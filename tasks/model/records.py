"""The records of a ledger: a key in each state of its life, a create whose outcome is unknown, an emergency."""

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

Installation = Annotated[str, Field(pattern=rf"^([a-z]{{{INSTALLATION_LENGTH}}})?$")]
"""The id that stands in the markers of new keys; with any other a lost key could not be found again. Empty for none."""


class Entry(BaseModel):
    """A part of the ledger; an unknown field is refused, as it may hold what must not be lost."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MadeKey(Entry):
    """A key of this rotation.

    `fingerprint` is empty if the key was found by its marker after its ledger was lost, `made_by` if it was adopted.
    `left_at` are the places that may still hold it, although the rotation no longer publishes there.
    """

    hash: str
    label: str
    fingerprint: str
    made_by: UUID | None = None
    connection: str
    workspace_id: str | None = None
    left_at: tuple[str, ...] = ()

    def told(self) -> dict[str, str]:
        """Return the key as the payload of an event, without its fingerprint."""
        return {"key_label": self.label, "key_hash": self.hash, "connection": self.connection}

    def leaving(self, was: Mapping[str, str], places: Mapping[str, str]) -> Self:
        """Return the key with the places that it is left at, once its rotation publishes elsewhere.

        Args:
            was: Where each destination pointed when the key was published.
            places: Where each one points now.
        """
        left = dict.fromkeys((*self.found_again(places).left_at, *left_places(was, places)))
        return self.model_copy(update={"left_at": tuple(left)})

    def found_again(self, places: Mapping[str, str]) -> Self:
        """Return the key without the places to which its rotation publishes again."""
        now = [*places, *places.values()]
        left = tuple(place for place in self.left_at if not any(is_same(place, other) for other in now))
        return self.model_copy(update={"left_at": left})


class Budget(Entry):
    """A limit that is temporarily smaller, because former keys have spent a part of it.

    `ends_at` is when the full limit is due again; never, if the limit has no reset.
    """

    carried: Decimal
    ends_at: datetime | None = None

    def runs(self, now: datetime) -> bool:
        """Return whether the spending of former keys still counts."""
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
        """Return where each destination pointed; empty where the block itself is the place, or it is not known."""
        return dict(zip(self.destinations, self.places or ("",) * len(self.destinations), strict=True))


class Current(MadeKey, Placed):
    """The key that every destination holds.

    `terms` have the full limit, even while a carried budget reduces it at OpenRouter. Until `late_until` a write of the
    key whose outcome is unknown may still take effect. `inherits` is whether it has its predecessors' places in lists.
    """

    since: datetime
    rotated_by: UUID | None = None
    terms: Terms | None = None
    budget: Budget | None = None
    late_until: datetime | None = None
    inherits: bool = False

    @property
    def is_adopted(self) -> bool:
        """Whether a person's key was taken up, which the rotation's first key is still to replace."""
        return self.made_by is None and self.rotated_by is None


class Superseded(MadeKey):
    """A former key, alive until it is revoked.

    `revoke_at` is when its revocation is next considered: at the end of the overlap, after a postponement, or when its
    time as a disabled key is over. `revoking` announces the call that disables or deletes it, until its outcome is
    known. `capped` is whether its limit was lowered to what it has spent, if its budget was carried over.
    """

    since: datetime | None = None
    overlap_ends: datetime | None = None
    revoke_at: datetime
    at_once: bool = False
    revoking: bool = False
    disabled: bool = False
    postponed: int = 0
    usage: Decimal | None = None
    usage_since: datetime | None = None
    budget: Budget | None = None
    capped: bool | None = None
    late_until: datetime | None = None


class Pending(Placed):
    """A key that is about to be created, or was created and is not current yet.

    Where the current key has the same places, they are not kept twice.
    """

    run_id: UUID
    connection: str
    workspace_id: str | None = None
    intended_at: datetime
    terms: Terms | None = None
    budget: Budget | None = None
    key: MadeKey | None = None
    late_writes: timedelta | None = None


class Unresolved(Entry):
    """A create whose outcome is unknown and whose key was not found: it may still turn up."""

    run_id: UUID
    connection: str
    workspace_id: str | None = None
    since: datetime


class Emergency(Entry):
    """The last emergency that has published its key, and when it made every older key due."""

    run_id: UUID
    at: datetime
