"""A 429 to one run of a process slows the others down, instead of failing them."""

from __future__ import annotations

import httpx
import pytest

from blocks.errors import RateLimitedError
from blocks.http import MAX_WAIT_SECONDS, JsonHttp, seconds_to_wait
from tests.blocks.test_http import HEADERS, Service

LATER_RUNS = 20


class Limited:
    """A service that answers 429 once, and two connections to it, as two runs of a worker have."""

    def __init__(self) -> None:
        self.first, self.second = (Service((200, {}, b"{}")) for _ in range(2))
        self.first.answers = [(429, {"Retry-After": "7"}, b"{}"), (200, {}, b"{}")]

    async def ask(self, of: Service, method: str, url: str = "https://api.example") -> None:
        """Make one call of a run."""
        transport = httpx.MockTransport(of.answer)
        async with JsonHttp("Service", url, transport=transport, sleep=of.sleep) as connection:
            await connection.request(method, "keys", doing="asking", headers=HEADERS)


async def test_a_429_to_one_run_slows_the_reads_of_the_others() -> None:
    """They would get the same answer, and fail at their last attempt; the run itself waits once."""
    limited = Limited()
    await limited.ask(limited.first, "GET")

    # Of many later connections, one is likely to be where the first was in memory.
    for _ in range(LATER_RUNS):
        await limited.ask(limited.second, "GET")

    assert len(limited.first.waits) == 1
    assert len(limited.second.waits) == LATER_RUNS
    assert all(5 < seconds < 8.1 for seconds in limited.first.waits + limited.second.waits)
    assert 5 < seconds_to_wait() <= 7


async def test_a_429_delays_no_write_of_another_run_and_no_other_service() -> None:
    """A write follows right after the check that the run may make it."""
    limited = Limited()
    await limited.ask(limited.first, "GET")

    await limited.ask(limited.second, "POST")
    await limited.ask(limited.second, "GET", "https://another.example")

    assert limited.second.waits == []


async def test_a_shorter_429_shortens_no_wait_under_way() -> None:
    """Given a service that asks to wait for seven seconds, and answers 429 without a time to a write of another run."""
    limited = Limited()
    await limited.ask(limited.first, "GET")
    limited.second.answers = [(429, {}, b"{}"), (200, {}, b"{}")]

    await limited.ask(limited.second, "POST")

    assert 5 < seconds_to_wait() <= 7


async def test_a_429_that_asks_for_long_slows_the_others_for_a_bounded_time() -> None:
    """After that they find out themselves."""
    limited = Limited()
    limited.first.answers = [(429, {"Retry-After": "86400"}, b"{}")]
    with pytest.raises(RateLimitedError):
        await limited.ask(limited.first, "GET")

    assert MAX_WAIT_SECONDS - 1 < seconds_to_wait() <= MAX_WAIT_SECONDS
