"""Each attempt of a write to Prefect's API is sent once, and new attempts start only for a short time."""

from __future__ import annotations

from typing import Any
from unittest import mock

import httpx
import pytest
from prefect.client.base import PrefectHttpxAsyncClient

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


def refusing(statuses: list[int], headers: dict[str, str]) -> tuple[Any, list[float]]:
    """Return a client whose server answers these statuses in turn, and the list of the waits between them."""
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(statuses.pop(0), headers=headers, json={}, request=request)

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    client = mock.Mock()
    client._client = PrefectHttpxAsyncClient(
        base_url="http://127.0.0.1:9", transport=httpx.MockTransport(answer), enable_csrf_support=False
    )
    client.wait = wait
    return client, waits


@pytest.mark.parametrize(
    ("headers", "shortest", "longest"),
    [
        ({}, 0.04, 0.5),
        ({"Retry-After": "3"}, 3.0, 4.0),
        ({"Retry-After": "3600"}, 5.0, 7.0),
        ({"Retry-After": "1e9"}, 5.0, 7.0),
        ({"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}, 5.0, 7.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0, 0.0),
    ],
    ids=["a busy SQLite", "three seconds", "an hour", "decades", "until a date", "until a date of the past"],
)
async def test_a_request_that_is_refused_for_a_moment_is_sent_again_soon(
    headers: dict[str, str], shortest: float, longest: float
) -> None:
    """Prefect's client would wait two seconds where SQLite is busy for milliseconds, and an hour for a proxy."""
    client, waits = refusing([503, 429, 503, 200] if headers else [503, 503, 503, 200], headers)
    gate.watch_answers(client)

    with mock.patch("anyio.sleep", client.wait):
        answer = await client._client.post("/flow_runs/")

    assert answer.status_code == 200
    assert [shortest <= seconds <= longest for seconds in waits] == [True] * 3


async def test_a_server_that_is_down_is_not_asked_quickly_for_ever() -> None:
    """After the quick repetitions, Prefect's client waits longer and longer."""
    client, waits = refusing([503] * 4 + [200], {})
    gate.watch_answers(client)

    with mock.patch("anyio.sleep", client.wait):
        await client._client.post("/flow_runs/")

    assert waits[-1] > 2
