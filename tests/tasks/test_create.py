"""A create whose outcome is not known: settled first, and made once more only when the service permits."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.server import Fault
from tests.tasks.conftest import Life


@pytest.mark.parametrize(("asked", "waited"), [("7", 7), (None, 0)], ids=["Retry-After", "no Retry-After"])
async def test_a_create_is_made_again_when_the_service_has_asked_to_wait_for_it(
    life: Life, asked: str | None, waited: int
) -> None:
    """OpenRouter says 503 and made no key: after its own wait the one other attempt is made."""
    headers = {"Retry-After": asked} if asked else {}
    life.app.state.faults.add(Fault("before", "POST", "/keys$", status=503, headers=headers, times=1))
    begun = life.time

    await life.rotate()

    assert len(life.openrouter.created) == 1
    assert life.time - begun >= timedelta(seconds=waited)


async def test_a_create_is_left_to_the_next_run_when_the_service_asks_for_too_much_patience(life: Life) -> None:
    """A run does not sit and wait for an hour, and does not knock earlier than it was asked to."""
    life.app.state.faults.add(Fault("before", "POST", "/keys$", status=503, headers={"Retry-After": "3600"}, times=1))

    await life.failure(life.rotate())

    assert life.openrouter.created == []
    assert life.ledger.pending is None
