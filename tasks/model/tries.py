"""Pure decisions about tries: whether a failed run is worth another one, when, and who must hear of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Self
from uuid import UUID

from blocks.errors import (
    ConflictError,
    KeyRotationError,
    NotYetAcceptedError,
    PlaceLostError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
)

WAITS = (
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
    timedelta(hours=4),
    timedelta(hours=12),
    timedelta(days=1),
)
"""How long to wait before each try; the last wait is repeated."""
EMERGENCY_WAITS = (
    timedelta(minutes=1),
    timedelta(minutes=2),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
)
"""The same for an emergency, whose older keys are still alive."""
QUIET_TRIES = 3
"""How many tries may fail before a person is told."""
TRIES_AGAIN = "TriesAgain"
"""The name of the state of a failed run that is tried again, and that nobody needs to hear of yet."""
NUMBER, RUN, SINCE = "key-rotation.try", "key-rotation.run", "key-rotation.since"
"""The labels of a flow run that is a try: its number, the run that it finishes, and when that one first started."""
SCHEDULED_FOR = "key-rotation.scheduled-for"
"""The label with the time of the schedule that created the run that it finishes, if one did."""


@dataclass(frozen=True)
class Try:
    """What a run is a try of.

    Args:
        number: 1 for the first try after a failure, 0 for a run that is none.
        run_id: The run that it finishes; its own id if it is a run of its own.
        since: When that run first started, UTC.
        scheduled_for: The time for which a schedule created that run, UTC; `None` for a manual run.
    """

    number: int
    run_id: UUID
    since: datetime
    scheduled_for: datetime | None = None

    @classmethod
    def read(
        cls, labels: Mapping[str, Any], run_id: UUID, started: datetime, scheduled_for: datetime | None = None
    ) -> Self:
        """Read a flow run's labels; one without them, or with others' in their place, is a run of its own.

        Args:
            labels: The flow run's labels.
            run_id: Its id.
            started: When it first started, UTC.
            scheduled_for: The time for which its schedule created it, UTC; `None` for a manual run.
        """
        number = number_of(labels)
        try:
            of_schedule = _time(labels[SCHEDULED_FOR]) if SCHEDULED_FOR in labels else None
            return cls(number, UUID(str(labels[RUN])), _time(labels[SINCE]), of_schedule)
        except (KeyError, ValueError, OverflowError):
            return cls(number, run_id, started, scheduled_for)

    def labels(self, number: int) -> dict[str, str | int]:
        """Return the labels of the try with this number, after this one has failed."""
        of_schedule = {SCHEDULED_FOR: self.scheduled_for.isoformat()} if self.scheduled_for else {}
        return {NUMBER: number, RUN: str(self.run_id), SINCE: self.since.isoformat(), **of_schedule}


def _time(label: object) -> datetime:
    return datetime.fromisoformat(str(label)).astimezone(UTC)


def is_try(labels: Mapping[str, Any]) -> bool:
    """Return whether a run with these labels finishes another one; a regular run that stands for a try does not."""
    return RUN in labels


def number_of(labels: Mapping[str, Any]) -> int:
    """Return the number of a try, 0 for a run that is none."""
    number = labels.get(NUMBER)
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 0


def passes_by_itself(error: KeyRotationError) -> bool:
    """Return whether the cause of a failure may well be gone later, although nobody does anything about it."""
    if error.causes:
        return all(passes_by_itself(cause) for cause in error.causes)
    if isinstance(error, ServiceError):
        refused = isinstance(error, UnauthorizedError)
        return isinstance(error, UnavailableError | ConflictError) or (error.retryable and not refused)
    return isinstance(error, PlaceLostError | NotYetAcceptedError)


def asked_to_wait(error: KeyRotationError) -> timedelta:
    """Return how long the services that failed have asked to wait, at most the longest wait between two tries."""
    if error.causes:
        return max(map(asked_to_wait, error.causes))
    return timedelta(seconds=min(getattr(error, "retry_after", None) or 0.0, WAITS[-1].total_seconds()))


@dataclass(frozen=True)
class Coming:
    """A run of the same deployment and purpose that is still to start.

    Args:
        id: The flow run's id.
        at: When it starts, UTC.
        number: Its number if it is a try, or stands for one, else 0.
        finishes: The run that it finishes, if it is a try.
    """

    id: UUID
    at: datetime
    number: int = 0
    finishes: UUID | None = None


@dataclass(frozen=True)
class Next:
    """The try that follows a failure.

    Args:
        number: Its number.
        at: When it starts, UTC.
        run: The flow run that is it, if one is scheduled already.
    """

    number: int
    at: datetime
    run: Coming | None = None

    @property
    def needs_person(self) -> bool:
        """Whether so many tries have failed that a person is told."""
        return self.number > QUIET_TRIES


def next_try(
    name: str,
    failed: Try,
    coming: Sequence[Coming],
    now: datetime,
    *,
    emergency: bool,
    asked: timedelta,
    crashed: bool = False,
) -> Next:
    """Decide on the try after a failure.

    There is one at a time for each run that has failed. A regular run that starts earlier takes the place of the try of
    a scheduled run, whose work it does; not of a person's run, because it may find the key too young, and end. Nor does
    the try of another run, because it may find that its own work is done.

    Args:
        name: The name of what failed, from which the wait is jittered.
        failed: What has failed.
        coming: The runs of the same purpose that are still to start.
        now: The current time, UTC.
        emergency: Whether what failed is an emergency.
        asked: How long a service has asked to wait.
        crashed: Whether its process has died. The first try after that does not wait: no service was the cause.
    """
    ordered = sorted(coming, key=lambda run: run.at)
    if there := next((run for run in ordered if run.finishes == failed.run_id), None):
        return Next(there.number, there.at, there)
    number = failed.number + 1
    at_once = crashed and number == 1
    at = now if at_once else now + wait_before(name, number, emergency=emergency, asked=asked)
    regular = next((run for run in ordered if run.finishes is None and run.at <= at), None)
    if regular is not None and failed.scheduled_for is not None:
        return Next(max(number, regular.number), regular.at, regular)
    return Next(number, at)


def wait_before(name: str, number: int, *, emergency: bool, asked: timedelta = timedelta(0)) -> timedelta:
    """Return the wait before a try: growing, and up to half longer by a hash of the name and the number.

    So rotations that failed at one moment do not come back at one moment.
    """
    waits = EMERGENCY_WAITS if emergency else WAITS
    wait = max(waits[min(number, len(waits)) - 1], asked)
    digest = sha256(f"{name} {number}".encode()).digest()
    return wait * (1 + int.from_bytes(digest[:8]) / 2**65)
