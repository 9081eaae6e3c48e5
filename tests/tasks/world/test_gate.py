"""Writes to Prefect's API are sent once each, and begun again only for a short time."""

from __future__ import annotations

from unittest import mock

import pytest

from blocks.errors import ServiceError
from tasks.world import gate

PASSING = ServiceError("Prefect's API failed.", retryable=True)


async def test_a_write_that_fails_in_a_way_that_passes_is_made_again() -> None:
    """A failure of a moment costs a run nothing."""
    write = mock.AsyncMock(side_effect=[PASSING, PASSING, None])

    await gate.persistently(write)

    assert write.await_count == 3


async def test_a_write_is_not_begun_again_after_the_deadline() -> None:
    """Prefect's client sleeps as long as `Retry-After` asks: all attempts together must end before a slot's lease."""
    write = mock.AsyncMock(side_effect=PASSING)

    with mock.patch.object(gate, "DEADLINE_SECONDS", 0.0), pytest.raises(ServiceError):
        await gate.persistently(write)

    assert write.await_count == 1
