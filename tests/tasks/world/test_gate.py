"""Each attempt of a write to Prefect's API is sent once, and new attempts start only for a short time."""

from __future__ import annotations

from unittest import mock

import pytest

from blocks.errors import ServiceError
from tasks.world import gate

PASSING = ServiceError("Prefect's API failed.", retryable=True)


async def test_a_write_that_fails_in_a_way_that_passes_is_made_again() -> None:
    """A short failure does not fail the run."""
    write = mock.AsyncMock(side_effect=[PASSING, PASSING, None])

    await gate.persistently(write)

    assert write.await_count == 3


async def test_a_write_is_not_begun_again_after_the_deadline() -> None:
    """Prefect's client waits as long as `Retry-After` asks, but all attempts must end before the lease of a slot."""
    write = mock.AsyncMock(side_effect=PASSING)

    with mock.patch.object(gate, "DEADLINE_SECONDS", 0.0), pytest.raises(ServiceError):
        await gate.persistently(write)

    assert write.await_count == 1
