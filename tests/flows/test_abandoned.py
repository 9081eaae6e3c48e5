"""What a worker does about runs that have died, whatever Prefect's API answers meanwhile."""

from __future__ import annotations

from unittest.mock import AsyncMock, create_autospec
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun

from blocks.errors import ServiceError
from flows import abandoned


async def test_a_try_that_could_not_be_scheduled_is_scheduled_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes at Prefect's API does not end the worker, and a crashed run gets its try, once."""
    away = ServiceError("Prefect's API failed.", retryable=True)
    try_again = AsyncMock(side_effect=[away, None])
    monkeypatch.setattr(abandoned, "try_again", try_again)
    client = create_autospec(PrefectClient, instance=True)
    client.read_flow_runs.return_value = [FlowRun(flow_id=uuid4(), name="rotate checkout")]
    client.read_flow.return_value = Flow(name="rotate", labels={})
    looks = abandoned.Abandoned(client, "key-rotation")

    for _ in range(3):
        await looks.try_again()

    assert try_again.await_count == 2
