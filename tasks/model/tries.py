"""Pure decisions about tries: whether a failed run is tried again, when, and whether a person must know."""

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
    OtherRunError,
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
"""The wait before each try; the last one is repeated."""
EMERGENCY_WAITS = (
    timedelta(minutes=1),
    timedelta(minutes=2),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
)
"""The same for an emergency, which is urgent because the older keys are still alive."""
QUIET_TRIES = 3
"""How many tries may fail before a person is alerted."""
TRIES_AGAIN = "TriesAgain"
"""The state name of a failed run that is tried again, and that alerts nobody yet."""
NUMBER, RUN, SINCE = "key-rotation.try", "key-rotation.run", "key-rotation.since"
"""The labels of a try: its number, the run that it finishes, and when that run first started."""
SCHEDULED_FOR = "key-rotation.scheduled-for"
"""The label with the scheduled time of the run that a try finishes, if a schedule created that run."""


@dataclass(frozen=True)
class Try:
    """The run that a flow run finishes as a try; itself, if it is no try.

    Args:
        number: 1 for the first try after a failure, 0 for a run that is no try.
        run_id: The run that it finishes; its own id if it is no try.
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
        """Parse a flow run's labels; without valid ones, the run is no try.

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
        """Return the labels of the next try, with this number."""
        of_schedule = {SCHEDULED_FOR: self.scheduled_for.isoformat()} if self.scheduled_for else {}
        return {NUMBER: number, RUN: str(self.run_id), SINCE: self.since.isoformat(), **of_schedule}


def _time(label: object) -> datetime:
    return datetime.fromisoformat(str(label)).astimezone(UTC)


def is_try(labels: Mapping[str, Any]) -> bool:
    """Return whether these labels are those of a try; a regular run that takes a try's place has only its number."""
    return RUN in labels


def number_of(labels: Mapping[str, Any]) -> int:
    """Return the number of a try; 0 for a run that is none."""
    number = labels.get(NUMBER)
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 0


def passes_by_itself(error: KeyRotationError) -> bool:
    """Return whether the cause of a failure may pass without anybody's help."""
    if error.causes:
        return all(passes_by_itself(cause) for cause in error.causes)
    if isinstance(error, ServiceError):
        refused = isinstance(error, UnauthorizedError)
        return isinstance(error, UnavailableError | ConflictError) or (error.retryable and not refused)
    return isinstance(error, OtherRunError | NotYetAcceptedError)


def asked_to_wait(error: KeyRotationError) -> timedelta:
    """Return how long the failed services asked to wait (`Retry-After`), limited to the longest wait before a try."""
    if error.causes:
        return max(map(asked_to_wait, error.causes))
    return timedelta(seconds=min(getattr(error, "retry_after", None) or 0.0, WAITS[-1].total_seconds()))


@dataclass(frozen=True)
class Coming:
    """A run of the same deployment and purpose that has not started.

    Args:
        id: The flow run's id.
        at: Its scheduled time, UTC.
        number: Its number if it is a try, or takes the place of one, else 0.
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
        run: The flow run that already stands for it, if any.
        is_taken: Whether it has been started already, because the failed run was reported as crashed while it went on.
    """

    number: int
    at: datetime
    run: Coming | None = None
    is_taken: bool = False

    @property
    def needs_person(self) -> bool:
        """Whether so many tries have failed that a person is alerted; a try that has started alerts for itself."""
        return self.number > QUIET_TRIES and not self.is_taken


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

    Each failed run has one try at a time. An earlier regular run replaces the try of a scheduled run, because it does
    the same work; not the try of a manual run, because the regular run may find the key too young. The try of another
    run replaces none, because it may find that its own work is done.

    Args:
        name: A name from which the jitter of the wait is derived.
        failed: The failed run.
        coming: The runs of the same purpose that have not started.
        now: The current time, UTC.
        emergency: Whether the failed run is an emergency.
        asked: How long a service asked to wait.
        crashed: Whether its process died. Then the first try does not wait, because no service was the cause.
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
    """Return the wait before a try: growing, plus up to a half by a hash of the name and the number.

    The jitter keeps rotations that failed together from retrying together.
    """
    waits = EMERGENCY_WAITS if emergency else WAITS
    wait = max(waits[min(number, len(waits)) - 1], asked)
    digest = sha256(f"{name} {number}".encode()).digest()
    return wait * (1 + int.from_bytes(digest[:8]) / 2**65)
