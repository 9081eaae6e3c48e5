"""Whether and when a failed run is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from blocks.errors import (
    ConfigurationError,
    ConflictError,
    DestinationError,
    ForbiddenError,
    KeyRotationError,
    LedgerError,
    MissingBlockError,
    NotFoundError,
    NotYetAcceptedError,
    OtherAccountError,
    OtherRunError,
    OverwrittenError,
    RateLimitedError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    VerificationError,
)
from tasks.model.tries import (
    EMERGENCY_WAITS,
    NUMBER,
    RUN,
    SINCE,
    WAITS,
    Coming,
    Next,
    Try,
    asked_to_wait,
    next_try,
    passes_by_itself,
    wait_before,
)

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RUN_ID = uuid4()
PASSING = [
    UnreachableError("no answer"),
    RateLimitedError("429", retry_after=60),
    UnavailableError("503"),
    UnavailableError("sealed", retryable=False),
    ConflictError("somebody else was first"),
    ServiceError("Prefect's API failed.", retryable=True),
    OtherRunError("another run is at work"),
    NotYetAcceptedError("not yet"),
]
FOR_A_PERSON = [
    KeyRotationError("an unexpected ValueError"),
    ConfigurationError("rotation.overlap: wrong"),
    MissingBlockError("deleted"),
    LedgerError("unreadable"),
    VerificationError("other settings"),
    DestinationError("does not hold it"),
    OverwrittenError("is not there any more"),
    UnauthorizedError("401"),
    UnauthorizedError("401", retryable=True),
    ForbiddenError("403"),
    NotFoundError("404"),
    RejectedError("400"),
    OtherAccountError("another account"),
    UnexpectedAnswerError("no JSON"),
    UnreachableError("its certificate is not trusted", retryable=False),
]


def named(error: KeyRotationError) -> str:
    """Return a test id for an error."""
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", PASSING, ids=named)
def test_what_passes_by_itself_is_tried_again(error: KeyRotationError) -> None:
    """A service that is down, a rate limit or a queue needs no action by a person."""
    assert passes_by_itself(error)


@pytest.mark.parametrize("error", FOR_A_PERSON, ids=named)
def test_what_needs_a_person_is_not_tried_again(error: KeyRotationError) -> None:
    """Another run would fail in the same way."""
    assert not passes_by_itself(error)


def test_every_error_is_decided_upon() -> None:
    """A new error class must be added to one of the two lists above."""
    classes = {KeyRotationError}
    while new := {each for kind in classes for each in kind.__subclasses__()} - classes:
        classes |= new

    assert {each for each in classes if each.__module__ == "blocks.errors"} == {
        type(error) for error in PASSING + FOR_A_PERSON
    }


def test_several_failures_pass_if_each_of_them_does() -> None:
    """One failure that needs a person decides, and otherwise the longest requested wait counts."""
    passing = DestinationError.combine([UnavailableError("a"), RateLimitedError("b", retry_after=90)])
    mixed = DestinationError.combine([UnavailableError("a"), ForbiddenError("b")])

    assert passes_by_itself(passing)
    assert asked_to_wait(passing) == timedelta(seconds=90)
    assert asked_to_wait(DestinationError.combine([passing, UnavailableError("c")])) == timedelta(seconds=90)
    assert not passes_by_itself(mixed)
    assert str(mixed) == "a b"


@pytest.mark.parametrize("emergency", [False, True])
def test_waits_grow_and_end_daily_or_hourly(emergency: bool) -> None:
    """The waits grow from minutes to hours to a day; all those of an emergency are shorter."""
    waits = [wait_before("checkout", number, emergency=emergency) for number in range(1, 8)]

    planned = EMERGENCY_WAITS if emergency else WAITS
    assert all(
        planned[min(n, len(planned) - 1)] <= wait < planned[min(n, len(planned) - 1)] * 1.5
        for n, wait in enumerate(waits)
    )
    assert all(sooner < later for sooner, later in pairwise(planned))
    assert wait_before("a", 1, emergency=True) < wait_before("a", 1, emergency=False)


def test_rotations_that_failed_together_do_not_come_back_together() -> None:
    """Of a thousand rotations, hardly any two share a second, and the next try is randomised again."""
    seconds = [int(wait_before(f"rotation-{i}", 3, emergency=False).total_seconds()) for i in range(1000)]

    assert len(set(seconds)) > 700
    assert max(seconds.count(second) for second in set(seconds)) <= 6
    order = [sorted(range(9), key=lambda i: wait_before(f"rotation-{i}", n, emergency=False)) for n in (1, 2)]
    assert order[0] != order[1]


def test_a_service_that_asks_for_longer_gets_it() -> None:
    """The service's wait is respected, up to a day."""
    assert wait_before("a", 1, emergency=False, asked=timedelta(hours=2)) >= timedelta(hours=2)
    assert asked_to_wait(RateLimitedError("429", retry_after=1e12)) == WAITS[-1]
    assert asked_to_wait(ConfigurationError("wrong")) == timedelta(0)


def following(*coming: Coming, number: int = 0, crashed: bool = False, by_hand: bool = False) -> Next:
    """Return what follows the failure of a scheduled run, of a person's run, or of a crash."""
    failed = Try(number, RUN_ID, NOW, None if by_hand else NOW)
    return next_try("checkout", failed, coming, NOW, emergency=False, asked=timedelta(0), crashed=crashed)


def test_the_first_failure_is_followed_by_the_first_try() -> None:
    """It comes after some minutes, and no person is notified."""
    first = following()

    assert (first.number, first.run, first.needs_person) == (1, None, False)
    assert 5 * MINUTE <= first.at - NOW < 8 * MINUTE


def test_after_a_crash_the_first_try_does_not_wait_and_the_others_do() -> None:
    """No service caused a crash, but a run that repeatedly crashes its process must not run without a pause."""
    assert following(crashed=True).at == NOW
    assert following(crashed=True, number=1) == following(number=1)


def test_a_failed_run_has_one_try_at_a_time() -> None:
    """The scheduled try is kept, even if a new one would come earlier."""
    pending = Coming(uuid4(), NOW + timedelta(hours=20), 6, finishes=RUN_ID)

    assert following(Coming(uuid4(), NOW + MINUTE), pending) == Next(6, pending.at, pending)


def test_the_try_of_another_run_stands_for_nobody_else() -> None:
    """It may find its own work done, and end without checking what other runs have left."""
    other = Coming(uuid4(), NOW + MINUTE, 2, finishes=uuid4())

    assert following(other).run is None


def test_an_earlier_regular_run_is_the_try_of_a_scheduled_one() -> None:
    """A later regular run does not replace a try."""
    earlier, later = Coming(uuid4(), NOW + 4 * MINUTE), Coming(uuid4(), NOW + 9 * MINUTE)

    assert following(later, earlier) == Next(1, earlier.at, earlier)
    assert following(later).run is None


def test_what_a_person_has_started_has_a_try_of_its_own() -> None:
    """A person's run rotates a key of any age, while a regular run may end because the key is too young."""
    regular = Coming(uuid4(), NOW + MINUTE, 3)

    assert following(regular, by_hand=True) == following(by_hand=True)


@pytest.mark.parametrize(("failed", "told"), [(0, False), (1, False), (2, False), (3, True), (9, True)])
def test_a_person_is_told_once_the_third_try_has_failed(failed: int, told: bool) -> None:
    """Earlier failures notify nobody, and each later one does again."""
    assert following(number=failed).needs_person is told


def test_a_try_knows_which_run_it_finishes() -> None:
    """The labels alone identify that run, through all further tries."""
    failed = Try(0, uuid4(), NOW)

    second = Try.read(Try.read(failed.labels(1), uuid4(), NOW + MINUTE).labels(2), uuid4(), NOW + 2 * MINUTE)

    assert second == Try(2, failed.run_id, NOW)


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {NUMBER: "1"},
        {NUMBER: True, RUN: str(UUID(int=1))},
        {NUMBER: -1, RUN: "x", SINCE: NOW.isoformat()},
        {RUN: str(UUID(int=1)), SINCE: "yesterday"},
    ],
)
def test_a_run_with_other_labels_is_one_of_its_own(labels: dict[str, object]) -> None:
    """Anybody can write labels, so other values are ignored."""
    own = uuid4()

    assert Try.read(labels, own, NOW) == Try(0, own, NOW)


def test_a_regular_run_in_the_place_of_a_try_counts_and_is_one_of_its_own() -> None:
    """It is a new rotation, which only continues the numbering."""
    own = uuid4()

    assert Try.read({NUMBER: 2}, own, NOW) == Try(2, own, NOW)
