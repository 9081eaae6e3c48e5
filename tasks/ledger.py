"""The ledger: which keys of a rotation are alive at OpenRouter, and why.

It is one Prefect variable per rotation and holds no secret. Every change is written *before* the step it announces,
so that whatever is killed, the next run knows what may exist. Each method that returns a `Ledger` is a pure transition;
`OpenLedger` is the only place that writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, Protocol, Self
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from blocks.errors import LedgerError, PlaceLostError

FINGERPRINT_LENGTH = 16
"""How many hex digits of the SHA-256 are kept: enough to tell keys apart, no help in finding one."""
TURNS_UP_WITHIN = timedelta(minutes=15)
"""How late a create may still take effect; until then its marker is looked for again by every run."""
MAX_LEDGER_BYTES = 5_000
"""What a Prefect variable may hold, as compact JSON."""


def fingerprint(secret: SecretStr | None) -> str | None:
    """Tell a key by a short digest instead of by the key itself.

    Args:
        secret: The key's plaintext, or `None` where there is none.

    Returns:
        The first digits of its SHA-256, or `None`.
    """
    if secret is None:
        return None
    return sha256(secret.get_secret_value().encode()).hexdigest()[:FINGERPRINT_LENGTH]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MadeKey(_Entry):
    """A key that this rotation made.

    `fingerprint` is empty where the key was found again by its marker after its ledger had been lost.
    """

    hash: str
    label: str
    fingerprint: str
    made_by: UUID
    connection: str
    workspace_id: str | None = None


class Current(MadeKey):
    """The key that every destination holds."""

    since: datetime
    rotated_by: UUID
    destinations: tuple[str, ...]


class Superseded(MadeKey):
    """A former key, alive until its overlap ends."""

    revoke_at: datetime


class Pending(_Entry):
    """A key that is about to be created, or was created and is not current yet."""

    run_id: UUID
    connection: str
    workspace_id: str | None = None
    destinations: tuple[str, ...]
    intended_at: datetime
    key: MadeKey | None = None


class Unresolved(_Entry):
    """A create whose outcome is not known and whose key was not found: it may still turn up."""

    run_id: UUID
    connection: str
    workspace_id: str | None = None
    since: datetime


class Ledger(_Entry):
    """What is known about a rotation's keys; each method returns the ledger after one more step."""

    format: Literal[1] = 1
    revision: int = 0
    writer: str = ""
    current: Current | None = None
    pending: Pending | None = None
    superseded: tuple[Superseded, ...] = ()
    unresolved: tuple[Unresolved, ...] = ()

    def hashes(self) -> set[str]:
        """Collect the hashes of every key that the ledger explains.

        Returns:
            The hashes of the current, the pending and the superseded keys.
        """
        pending = self.pending.key if self.pending else None
        return {key.hash for key in (self.current, pending, *self.superseded) if key}

    def due(self, now: datetime) -> list[Superseded]:
        """Say which superseded keys are to be revoked.

        Args:
            now: The current moment, UTC.

        Returns:
            Those whose overlap has ended.
        """
        return [key for key in self.superseded if key.revoke_at <= now]

    def wakes(self) -> list[datetime]:
        """Say when something will have to be done about this rotation's older keys.

        Returns:
            The moments, UTC, in order: each end of an overlap, and each end of the time in which a lost create may
            still turn up.
        """
        return sorted(
            {key.revoke_at for key in self.superseded} | {entry.since + TURNS_UP_WITHIN for entry in self.unresolved}
        )

    def intended(self, pending: Pending) -> Self:
        """Announce that a key is about to be created."""
        return self._with(pending=pending)

    def created(self, key: MadeKey) -> Self:
        """Record the key that was created for the pending intent."""
        if self.pending is None:
            raise LedgerError("No key was announced, so none can have been created.")
        return self._with(pending=self.pending.model_copy(update={"key": key}))

    def dropped(self) -> Self:
        """Forget an intent whose key was certainly not created, or was found and deleted."""
        return self._with(pending=None)

    def left_unresolved(self) -> Self:
        """Remember an intent whose key was not found, but may still turn up."""
        if self.pending is None:
            return self
        intent = self.pending
        entry = Unresolved(
            run_id=intent.run_id,
            connection=intent.connection,
            workspace_id=intent.workspace_id,
            since=intent.intended_at,
        )
        return self._with(pending=None, unresolved=(*self.unresolved, entry))

    def resolved(self, entries: Iterable[Unresolved]) -> Self:
        """Forget creates that can no longer turn up."""
        gone = set(entries)
        return self._with(unresolved=tuple(entry for entry in self.unresolved if entry not in gone))

    def abandoned(self, revoke_at: datetime) -> Self:
        """Give the pending key up: it becomes a superseded one."""
        if self.pending is None or self.pending.key is None:
            raise LedgerError("No pending key was created, so none can be given up.")
        key = Superseded(**self.pending.key.model_dump(), revoke_at=revoke_at)
        return self._with(pending=None, superseded=(*self.superseded, key))

    def published(self, run_id: UUID, destinations: tuple[str, ...], now: datetime, revoke_at: datetime) -> Self:
        """Make the pending key the current one, and the current one superseded."""
        if self.pending is None or self.pending.key is None:
            raise LedgerError("No pending key was created, so none can become the current one.")
        current = Current(**self.pending.key.model_dump(), since=now, rotated_by=run_id, destinations=destinations)
        return self._with(current=current, pending=None, superseded=(*self.superseded, *self._retiring(revoke_at)))

    def _retiring(self, revoke_at: datetime) -> tuple[Superseded, ...]:
        if self.current is None:
            return ()
        former = self.current.model_dump(include=set(MadeKey.model_fields))
        return (Superseded(**former, revoke_at=revoke_at),)

    def hastened(self, now: datetime) -> Self:
        """Make every superseded key due at once."""
        return self._with(
            superseded=tuple(key.model_copy(update={"revoke_at": min(key.revoke_at, now)}) for key in self.superseded)
        )

    def found(self, keys: Iterable[Superseded]) -> Self:
        """Take up keys of this rotation that no ledger explained."""
        return self._with(superseded=(*self.superseded, *keys))

    def revoked(self, key_hash: str) -> Self:
        """Drop a key that is dead."""
        return self._with(superseded=tuple(key for key in self.superseded if key.hash != key_hash))

    def written(self, writer: str) -> Self:
        """Sign the ledger for its next write."""
        return self._with(revision=self.revision + 1, writer=writer)

    def _with(self, **changes: Any) -> Self:
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """Spell the ledger for a Prefect variable.

        Returns:
            A JSON object without empty fields.
        """
        return self.model_dump(mode="json", exclude_none=True)

    def size(self) -> int:
        """Count the bytes that the ledger takes in a Prefect variable.

        Returns:
            The length of its compact JSON, in bytes.
        """
        return len(json.dumps(self.to_json(), separators=(",", ":")).encode())


def ledger_variable(rotation: str) -> str:
    """Name the Prefect variable that holds a rotation's ledger.

    Args:
        rotation: The rotation's name.

    Returns:
        The variable's name.
    """
    return f"key-rotation-{rotation}"


def parse_ledger(rotation: str, value: Any) -> Ledger:
    """Read a ledger from the value of its variable.

    Args:
        rotation: The rotation's name, for the message.
        value: The variable's value.

    Returns:
        The ledger.

    Raises:
        LedgerError: It is damaged, or was written by another version of this project.
    """
    try:
        return Ledger.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "value"
        raise LedgerError(
            f"The Prefect variable {ledger_variable(rotation)} is not a readable ledger (at {field}): put an earlier "
            "value back from its events, or delete it to start from what OpenRouter and the destinations show."
        ) from None


class LedgerStore(Protocol):
    """Where a ledger is kept; a Prefect variable, or a model of one in tests."""

    async def read(self) -> Any | None:
        """Read the value, `None` where there is none."""

    async def create(self, value: dict[str, Any]) -> None:
        """Write the first value; `PlaceLostError` where there is one already."""

    async def update(self, value: dict[str, Any]) -> None:
        """Write the next value."""


class OpenLedger:
    """A rotation's ledger during one run.

    Variables have no compare-and-set. The rotation's concurrency slot keeps others out; this class notices one that
    came in all the same. Before each write, and wherever `guard` is called, the stored ledger must be the last seen.

    Args:
        rotation: The rotation's name.
        store: Where the ledger is kept.
        run_id: The flow run that writes.
    """

    def __init__(self, rotation: str, store: LedgerStore, run_id: UUID) -> None:
        self._rotation = rotation
        self._store = store
        # Two attempts of one flow run are two writers: the first may still be alive.
        self._writer = f"{run_id}/{uuid4().hex[:8]}"
        self._seen: Any | None = None
        self.exists = False
        self.loaded = False
        self.ledger = Ledger()

    async def load(self) -> Ledger:
        """Read the ledger.

        Returns:
            The stored ledger, or an empty one where `exists` is then `False`.

        Raises:
            LedgerError: It is damaged.
        """
        self._seen = await self._store.read()
        self.exists = self._seen is not None
        self.ledger = parse_ledger(self._rotation, self._seen) if self.exists else Ledger()
        self.loaded = True
        return self.ledger

    async def guard(self) -> None:
        """Make sure that nobody else has written since this run last read or wrote.

        Raises:
            PlaceLostError: Somebody has.
        """
        if await self._store.read() != self._seen:
            raise PlaceLostError(
                f"Another run of rotation {self._rotation} has taken over, so this one stopped before its next write."
            )

    async def save(self, ledger: Ledger) -> None:
        """Write the next state of the ledger.

        Args:
            ledger: The ledger after the step that is about to be done, or has just been done.

        Raises:
            PlaceLostError: Somebody else has written since this run last read or wrote.
            LedgerError: The ledger would not fit into a Prefect variable.
        """
        signed = ledger.written(self._writer)
        self.check_size(signed)
        await self.guard()
        value = signed.to_json()
        await (self._store.update(value) if self.exists else self._store.create(value))
        self._seen, self.exists, self.ledger = value, True, signed

    def check_size(self, ledger: Ledger) -> None:
        """Refuse a ledger that a Prefect variable cannot hold.

        Args:
            ledger: The ledger as it would be written.

        Raises:
            LedgerError: It is too large.
        """
        if ledger.size() > MAX_LEDGER_BYTES:
            raise LedgerError(
                f"The ledger of rotation {self._rotation} has no room for another key: it already holds "
                f"{len(ledger.superseded)} superseded ones. Shorten the overlap, rotate less often, or run retire."
            )
