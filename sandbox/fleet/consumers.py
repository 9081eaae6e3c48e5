"""Applications that continuously use the keys of some rotations."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from sandbox.consumers import ask

REQUESTS_PER_SECOND = 50.0
"""The rate of all consumers together."""
CACHE_SECONDS = 3.0
"""How long a consumer uses a key before it reads its destination again."""
READ_WITHIN_SECONDS = 10.0
"""The timeout of a read; afterwards, the consumer keeps its present key."""


@dataclass
class Consumers:
    """Applications, each using the key in one destination.

    Args:
        base_url: The base URL of OpenRouter's API.
        read: Returns the key in a destination.
    """

    base_url: str
    read: Callable[[str], Awaitable[str]]
    answers: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    """A line for each failed request: the destination, the status, and the age of the key."""
    _cached: dict[str, _CachedKey] = field(default_factory=dict)

    async def begin(self, destinations: list[str]) -> None:
        """Read the destinations, as applications do when they start."""
        self._cached = {each: _CachedKey(await self.read(each), time.monotonic()) for each in destinations}

    async def work(self) -> None:
        """Send requests until this is cancelled."""
        async with asyncio.TaskGroup() as group:
            for destination, cached in self._cached.items():
                group.create_task(self._work(destination, cached, REQUESTS_PER_SECOND / len(self._cached)))

    async def _work(self, destination: str, cached: _CachedKey, per_second: float) -> None:
        reading = asyncio.create_task(self._keep_fresh(destination, cached))
        try:
            # The stand-in closes idle connections; a request that fails because of that says nothing about its key.
            async with httpx.AsyncClient(timeout=10, limits=httpx.Limits(max_keepalive_connections=0)) as client:
                while True:
                    begun = time.monotonic()
                    status = await ask(client, self.base_url, cached.key)
                    self.answers[status] += 1
                    if not httpx.codes.is_success(status):
                        age = begun - cached.read_at
                        self.failed.append(f"{destination}: {status}, with a key read {age:.0f} s ago")
                    await asyncio.sleep(max(0.0, begun + 1 / per_second - time.monotonic()))
        finally:
            reading.cancel()

    async def _keep_fresh(self, destination: str, cached: _CachedKey) -> None:
        while True:
            await asyncio.sleep(CACHE_SECONDS)
            try:
                async with asyncio.timeout(READ_WITHIN_SECONDS):
                    cached.key, cached.read_at = await self.read(destination), time.monotonic()
            except Exception:  # noqa: BLE001, S112 - an application keeps its present key
                continue


@dataclass
class _CachedKey:
    key: str
    read_at: float
