"""What a worker does about runs that have died, whatever Prefect's API answers meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from unittest.mock import AsyncMock, create_autospec
from uuid import uuid4

import pytest
from httpx import Response
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Running

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


@pytest.mark.parametrize(("running_for", "is_dead"), [(timedelta(seconds=5), False), (timedelta(minutes=5), True)])
async def test_a_retry_of_an_old_run_is_not_dead_before_its_first_heartbeat_arrives(
    running_for: timedelta, is_dead: bool
) -> None:
    """It first started this morning; what counts is since when it runs now."""
    now = datetime.now(UTC)
    retried = FlowRun(
        flow_id=uuid4(), start_time=now - timedelta(hours=5), state=Running(timestamp=now - running_for), run_count=2
    )
    client = create_autospec(PrefectClient, instance=True)
    client.read_flow_runs.return_value = [retried]
    client.request.return_value = Response(200, json=[{"value": f"prefect.flow-run.{uuid4()}"}])

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        await abandoned.Abandoned(client, "key-rotation").mark_the_silent(in_hand=())

    marked = [call.args[1].name for call in client.set_flow_run_state.await_args_list]
    assert marked == ["Crashed"] * is_dead
