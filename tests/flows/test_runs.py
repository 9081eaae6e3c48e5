"""How a run starts, and how one ends that failed for a passing reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.states import Running

from blocks.errors import UnavailableError
from flows import add_rotation, apply_settings, remove_rotation
from flows.runs import seconds_early
from tasks.model.tries import TRIES_AGAIN, Next

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scheduled", "wait"),
    [
        (NOW + timedelta(seconds=9.5), 9.5),
        (NOW, 0),
        (NOW - timedelta(days=7), 0),
        (NOW + timedelta(days=1), 0),
        (None, 0),
    ],
    ids=["fetched early", "on time", "after a week of downtime", "clocks that disagree", "not scheduled"],
)
def test_a_run_that_a_worker_starts_early_waits_for_its_time(scheduled: datetime | None, wait: float) -> None:
    """A run that was fetched early waits for its time; any other one starts at once."""
    assert seconds_early(scheduled, NOW) == wait


def add() -> Awaitable[State[None]]:
    """Run add-rotation."""
    connection: Any = "openrouter-credentials/openrouter"
    return add_rotation.fn(connection, key_name="checkout", rotation_name="checkout")


FLOWS: dict[str, Callable[[], Awaitable[State[None]]]] = {
    "add-rotation": add,
    "remove-rotation": lambda: remove_rotation.fn("checkout", "checkout"),
    "apply-settings": lambda: apply_settings.fn("checkout"),
}


@pytest.mark.parametrize(
    ("name", "ends_as"), [("add-rotation", "Failed"), ("remove-rotation", "Failed"), ("apply-settings", TRIES_AGAIN)]
)
async def test_an_order_that_a_later_one_may_contradict_is_not_tried_again(name: str, ends_as: str) -> None:
    """A late removal would remove a rotation that was added again since, and revoke its key."""
    away, following = UnavailableError("It answered 503."), Next(1, NOW)
    flow = next(each for each in (add_rotation, remove_rotation, apply_settings) if each.name == name)
    fields: Any = {"flow_run": FlowRun(flow_id=uuid4(), deployment_id=uuid4()), "flow": flow}
    with (
        FlowRunContext.model_construct(**fields),
        mock.patch("flows.add_rotation.block_name", side_effect=away),
        mock.patch("flows.remove_rotation.open_run", side_effect=away),
        mock.patch("flows.apply_settings.open_run", side_effect=away),
        mock.patch("flows.runs.name_run"),
        mock.patch("flows.runs.schedule_try", return_value=following),
    ):
        state = await FLOWS[name]()

    assert state.name == ends_as


async def test_a_try_is_scheduled_by_the_servers_clock_where_the_hosts_is_behind() -> None:
    """With a clock that is days behind, every try would be due at once."""
    days_ahead = datetime.now(UTC) + timedelta(days=2)
    fields: Any = {
        "flow_run": FlowRun(flow_id=uuid4(), deployment_id=uuid4(), state=Running(timestamp=days_ahead)),
        "flow": apply_settings,
    }
    with (
        FlowRunContext.model_construct(**fields),
        mock.patch("flows.apply_settings.open_run", side_effect=UnavailableError("It answered 503.")),
        mock.patch("flows.runs.name_run"),
        mock.patch("flows.runs.schedule_try", return_value=Next(1, NOW)) as schedule_try,
    ):
        await apply_settings.fn("checkout")

    assert schedule_try.await_args is not None
    assert schedule_try.await_args.args[3] >= days_ahead
