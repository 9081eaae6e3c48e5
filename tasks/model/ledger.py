"""The ledger: which keys of a rotation are alive at OpenRouter, and why.

It is stored in Prefect variables and holds no secret. It is a write-ahead log: each change is written *before* the step
that it announces, so that after a crash the next run knows what may exist. Methods that return a `Ledger` are pure
transitions; only `OpenLedger` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

from pydantic import ValidationError

from blocks.errors import LedgerError
from tasks.model.places import NO_PLACES, kept_places
from tasks.model.records import Current, Emergency, Entry, Installation, MadeKey, Pending, Superseded, Unresolved
from tasks.model.rotation import Retirement
from tasks.model.times import Moment
from tasks.model.written_off import WrittenOff

FORMAT = 3
"""The format that this package writes, and the newest that it reads."""
TURNS_UP_WITHIN = timedelta(minutes=15)
"""How late a create may still take effect; until then, every run searches for its marker."""


class Ledger(Entry):
    """The known keys of a rotation; each transition returns a new ledger.

    `installation` is the id in the markers of new keys; empty until this version creates one. `removed` tells whether
    the rotation was removed, `kept` which key its user then kept. Until `late_writes_until`, a write with an unknown
    outcome may bring another key, or a placeholder, into a destination; then the destinations are read again.
    """

    format: int = FORMAT
    package: str = ""
    revision: int = 0
    writer: str = ""
    installation: Installation = ""
    current: Current | None = None
    pending: Pending | None = None
    superseded: tuple[Superseded, ...] = ()
    unresolved: tuple[Unresolved, ...] = ()
    written_off: tuple[WrittenOff, ...] = ()
    emergency: Emergency | None = None
    late_writes_until: Moment | None = None
    retirement: Retirement = Retirement()
    removed: bool = False
    kept: Current | None = None

    @property
    def served(self) -> Current | None:
        """The key that consumers read: the current one, or the one kept when its rotation was removed."""
        return self.current or self.kept

    @property
    def is_closed(self) -> bool:
        """Whether this is the last term of a removed rotation: no key is left, but the term stays."""
        return self.removed and self == self.closed()

    def made_keys(self) -> list[MadeKey]:
        """Return the current, the pending and the superseded keys."""
        pending = self.pending.key if self.pending else None
        return [key for key in (self.current, pending, *self.superseded) if key]

    def entries(self) -> list[Current | Pending | Superseded | Unresolved]:
        """Return the entries about keys, also about those that may not exist."""
        return [entry for entry in (self.current, self.pending, *self.superseded, *self.unresolved) if entry]

    def hashes(self) -> set[str]:
        """Return the hashes of the keys."""
        return {key.hash for key in self.made_keys()}

    def destinations(self) -> set[str]:
        """Return the destinations of the current key, and those to which the pending one may have been published."""
        return {name for placed in (self.current, self.pending) if placed for name in placed.destinations}

    def workspaces(self, connection: str) -> set[str]:
        """Return the workspaces that the entries name, in a connection's account."""
        return {each.workspace_id for each in self.entries() if each.workspace_id and each.connection == connection}

    def due(self, now: datetime) -> list[Superseded]:
        """Return the superseded keys whose revocation is due."""
        return [key for key in self.superseded if key.revoke_at <= now]

    def due_times(self) -> list[datetime]:
        """Return the times (UTC), in order, at which older keys need attention.

        Those are the end of each overlap, of a carried budget's period, of the time in which the key of a create with
        unknown outcome may turn up, and of that in which a late write may bring in a dead key or one yet to be capped.
        """
        ends = {key.revoke_at for key in self.superseded} | {entry.since + TURNS_UP_WITHIN for entry in self.unresolved}
        late = {self.late_writes_until, *(key.late_until for key in self.superseded if key.capped is False)}
        if self.current and self.current.budget and self.current.budget.ends_at:
            ends.add(self.current.budget.ends_at)
        return sorted(ends | {moment for moment in late if moment})

    def intended(self, pending: Pending, installation: str = "") -> Self:
        """Announce that a key is about to be created; this reactivates a removed rotation."""
        if self.current and self.current.where() == pending.where():
            pending = pending.model_copy(update={"places": ()})
        known = installation or self.installation
        return self._with(pending=pending, installation=known, removed=False, kept=None)

    def where_pending(self) -> dict[str, str]:
        """Return where each destination of the pending key pointed when the key was announced."""
        if self.pending is None:
            return {}
        same = self.current and not self.pending.places and self.current.destinations == self.pending.destinations
        return self.current.where() if self.current and same else self.pending.where()

    def created(self, key: MadeKey) -> Self:
        """Record the key that was created for the pending intent."""
        if self.pending is None:
            raise LedgerError("No key was announced, so none can have been created.")
        return self._with(pending=self.pending.model_copy(update={"key": key}))

    def dropped(self) -> Self:
        """Drop an intent whose key was certainly not created, or was found and deleted."""
        return self._with(pending=None)

    def left_unresolved(self) -> Self:
        """Keep an intent as unresolved: its key was not found, but may still turn up."""
        if self.pending is None:
            return self
        intent, earlier = self.pending, self.unresolved_with(self.pending)
        entry = Unresolved(
            run_id=intent.run_id,
            connection=intent.connection,
            workspace_id=intent.workspace_id,
            since=max([intent.intended_at, *(each.since for each in earlier)]),
            several=bool(earlier),
        )
        return self._with(pending=None, unresolved=(*self.resolved(earlier).unresolved, entry))

    def unresolved_with(self, intent: Pending) -> list[Unresolved]:
        """Return the earlier creates whose keys would be found together with that of an intent."""
        return [entry for entry in self.unresolved if entry.covers(intent)]

    def resolved(self, entries: Iterable[Unresolved]) -> Self:
        """Drop creates whose keys can no longer turn up."""
        gone = set(entries)
        return self._with(unresolved=tuple(entry for entry in self.unresolved if entry not in gone))

    def publishing(self, late_writes: timedelta) -> Self:
        """Announce writes of the pending key that may take effect up to this long after their timeout."""
        if self.pending is None:
            raise LedgerError("No key was announced, so none can be published.")
        return self._with(pending=self.pending.model_copy(update={"late_writes": late_writes}))

    def late_until(self, now: datetime) -> datetime | None:
        """Return until when a write of the pending key may take effect; `None` if none can be late."""
        late = self.pending.late_writes if self.pending else None
        return now + late if late else None

    def continued(self, places: Mapping[str, str]) -> Self:
        """Announce the pending key's publication to where its destinations point now, and record its former places."""
        if self.pending is None or self.pending.key is None:
            raise LedgerError("No pending key was created, so none can be published.")
        key = self.pending.key.leaving(self.where_pending(), places)
        return self._with(pending=self.pending.model_copy(update={"key": key}))

    def pending_given_up(
        self,
        revoke_at: datetime,
        *,
        at_once: bool = False,
        late_until: datetime | None = None,
        places: Mapping[str, str] | None = None,
    ) -> Self:
        """Give up the pending key, which becomes a superseded one.

        It is not revoked while a late write could still put it into a destination.

        Args:
            revoke_at: When it is due, unless a late write requires more time.
            at_once: Whether to revoke it then, whatever the policy.
            late_until: Until when a write of it may take effect.
            places: Where each destination points now; `None` if no former place can hold the key.
        """
        if self.pending is None or self.pending.key is None:
            raise LedgerError("No pending key was created, so none can be given up.")
        given_up = self.pending.key if places is None else self.pending.key.leaving(self.where_pending(), places)
        key = Superseded(
            **given_up.model_dump(),
            revoke_at=max(revoke_at, late_until or revoke_at),
            at_once=at_once,
            late_until=late_until,
        )
        return self._with(pending=None, superseded=(*self.superseded, key))

    def adopted(self, key: Current) -> Self:
        """Make a key that this rotation did not create the current one, until the next rotation replaces it."""
        return self._with(current=key)

    def published(
        self,
        run_id: UUID,
        places: Mapping[str, str],
        now: datetime,
        revoke_at: datetime,
        retirement: Retirement,
        *,
        late_until: datetime | None = None,
        inherits: bool = False,
    ) -> Self:
        """Make the pending key the current one, and the current one superseded.

        Args:
            run_id: The run that published it.
            places: Where each destination points.
            now: The current time, UTC.
            revoke_at: When the former key is due.
            retirement: What happens to the former key then.
            late_until: Until when a write of the new key may take effect.
            inherits: Whether the new key joins the former one's lists.
        """
        if self.pending is None or self.pending.key is None:
            raise LedgerError("No pending key was created, so none can become the current one.")
        current = Current(
            **self.pending.key.model_dump(),
            since=now,
            rotated_by=run_id,
            destinations=tuple(places),
            places=kept_places(tuple(places), places),
            terms=self.pending.terms,
            budget=self.pending.budget,
            late_until=late_until,
            inherits=inherits,
        )
        former = self._retiring(now, revoke_at, places)
        if self.pending.budget is not None:
            former = tuple(key.model_copy(update={"capped": False}) for key in former)
        superseded = (*(key.without_returned_places(places) for key in self.superseded), *former)
        published = self._with(current=current, pending=None, superseded=superseded, retirement=retirement)
        return published.expecting_late_writes(late_until)

    def _retiring(
        self, now: datetime, revoke_at: datetime, places: Mapping[str, str] | None = None
    ) -> tuple[Superseded, ...]:
        if self.current is None:
            return ()
        leaving = self.current if places is None else self.current.leaving(self.current.where(), places)
        former = leaving.model_dump(include=set(MadeKey.model_fields))
        late_until = self.current.late_until
        return (
            Superseded(
                **former,
                since=now,
                overlap_ends=revoke_at,
                revoke_at=max(revoke_at, late_until or revoke_at),
                budget=self.current.budget,
                late_until=late_until,
            ),
        )

    def hastened(self, now: datetime, emergency: Emergency | None = None) -> Self:
        """Make every superseded key due immediately, whatever its policy, for an emergency that has published its key.

        Until when a late write may bring one of them back outlives them. Records about their use are dropped, so that
        even a full ledger has room for this change.
        """
        forgotten = {name: Superseded.model_fields[name].default for name in ("postponed", "usage", "usage_since")}
        changes = {**forgotten, "at_once": True}
        ends = tuple(
            key.model_copy(update={**changes, "revoke_at": min(key.revoke_at, now)}) for key in self.superseded
        )
        late = [key.late_until for key in self.superseded if key.late_until and key.late_until > now]
        hastened = self._with(superseded=ends, emergency=emergency or self.emergency)
        return hastened.expecting_late_writes(max(late, default=None))

    def expecting_late_writes(self, until: datetime | None) -> Self:
        """Record until when a write of unknown outcome may still take effect; `None` if none can."""
        return self if until is None else self._with(late_writes_until=max(until, self.late_writes_until or until))

    def looked_again(self) -> Self:
        """Record that the destinations need not be read again: no late write can come, or nobody publishes there."""
        return self._with(late_writes_until=None)

    def changed(self, key_hash: str, **changes: Any) -> Self:
        """Change fields of one superseded key."""
        return self._with(
            superseded=tuple(key.model_copy(update=changes) if key.hash == key_hash else key for key in self.superseded)
        )

    def replaced(self, current: Current, revoke_at: datetime, places: Mapping[str, str]) -> Self:
        """Make a key that every destination holds, such as a restored one, current; supersede the former one."""
        others = tuple(other.without_returned_places(places) for other in self.superseded if other.hash != current.hash)
        superseded = (*others, *self._retiring(current.since, revoke_at, places))
        return self._with(current=current, superseded=superseded).expecting_late_writes(current.late_until)

    def current_changed(self, **changes: Any) -> Self:
        """Change fields of the current key."""
        if self.current is None:
            raise LedgerError("There is no current key yet.")
        return self._with(current=self.current.model_copy(update=changes))

    def with_every_key_ended(self, now: datetime, revoke_at: datetime, emptied: Mapping[str, str] = NO_PLACES) -> Self:
        """Remove the rotation and end every key by `revoke_at`; the places not `emptied` still hold the current key."""
        pending = self.pending and self.pending.key
        superseded = self.pending_given_up(revoke_at, at_once=True).superseded if pending else self.superseded
        ends = tuple(
            key.model_copy(update={"revoke_at": min(key.revoke_at, revoke_at), "at_once": True}) for key in superseded
        )
        # The destinations of a removed rotation need no working key, so a late write does not delay the revocation.
        former = tuple(
            key.model_copy(update={"at_once": True, "revoke_at": revoke_at})
            for key in self._retiring(now, revoke_at, emptied)
        )
        removed = self._with(current=None, pending=None, superseded=(*ends, *former), removed=True)
        return removed.looked_again()

    def with_current_key_kept(self) -> Self:
        """Remove the rotation, and leave its current key to the user; older keys are deleted when they are due."""
        ends = tuple(key.model_copy(update={"at_once": True}) for key in self.superseded)
        # A Retry finds no current key any more.
        left = self._with(current=None, kept=self.current or self.kept, superseded=ends, removed=True)
        return left.looked_again()

    def closed(self) -> Self:
        """Close the ledger of a removed rotation that has no key left to revoke."""
        return type(self)(
            format=self.format, package=self.package, revision=self.revision, writer=self.writer, removed=True
        )

    def with_unrecorded(self, keys: Iterable[Superseded]) -> Self:
        """Add keys of this rotation that were in no ledger."""
        return self._with(superseded=(*self.superseded, *keys))

    def revoked(self, key_hash: str) -> Self:
        """Drop a key that no longer exists."""
        return self._with(superseded=tuple(key for key in self.superseded if key.hash != key_hash))

    def written(self, writer: str, package: str = "") -> Self:
        """Sign the ledger for its next write with the writing attempt and this package's version."""
        return self._with(format=FORMAT, package=package, revision=self.revision + 1, writer=writer)

    def _with(self, **changes: Any) -> Self:
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as JSON for a Prefect variable, without defaults, except for `format` and `superseded`."""
        always = {"format": self.format, "superseded": []}
        return {**always, **self.model_dump(mode="json", exclude_defaults=True)}


def parse_ledger(rotation: str, value: Any) -> Ledger:
    """Parse a ledger of this package's format or an older one.

    Raises:
        LedgerError: It was written by a newer package, or is invalid, for example after an edit by hand.
    """
    if isinstance(value, Mapping) and isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise LedgerError(
            f"The ledger of rotation {rotation} was written by a newer version of this package"
            f"{_version_in(value)}, so nothing was changed: upgrade this worker."
        )
    try:
        return Ledger.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "value"
        raise LedgerError(
            f"The ledger of rotation {rotation} cannot be read (at {field}): upgrade this worker if another one runs a "
            f"newer version{_version_in(value)}, or undo the edit of its Prefect variable. Nothing was changed."
        ) from None


def _version_in(value: Any) -> str:
    package = value.get("package") if isinstance(value, Mapping) else None
    return f" ({package})" if isinstance(package, str) and re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", package) else ""
