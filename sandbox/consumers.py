"""Applications that continuously use a key: how they read it, and what they send."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

CACHE_SECONDS = 1.0
"""How long a consumer uses a key before it reads its destination again; an overlap must be longer."""
TIMEOUT_SECONDS = 30.0
BODY = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}


async def read_secret(name: str) -> str:
    """Read the key in one of Prefect's secrets, as a flow does."""
    from prefect.blocks.system import Secret

    secret: Any = await Secret.aload(name)
    return str(secret.value.get_secret_value())


async def read_key(destination: str) -> str:
    """Read the key in a destination of any type; an empty text if it holds none."""
    from tasks.world.destinations import open_destination

    opened = await open_destination(destination)
    try:
        held = (await opened.read_content()).value
    finally:
        await opened.aclose()
    return held.get_secret_value() if held else ""


async def ask(client: httpx.AsyncClient, base_url: str, key: str, credential: str | None = None) -> int:
    """Send a request with a key, and return the status of the response."""
    query = {"byok": credential} if credential else None
    headers = {"Authorization": f"Bearer {key}"}
    answer = await client.post(f"{base_url}/chat/completions", params=query, json=BODY, headers=headers)
    return answer.status_code


@dataclass
class Consumer:
    """An application that uses the key in one destination, at a constant rate.

    Args:
        base_url: The base URL of OpenRouter's API.
        read: Returns the key.
        per_second: The rate of its requests.
        cache_seconds: How long it uses a key before it reads the next one.
        credential: The id of the BYOK credential that its requests require, if any.
        retries: Whether it sends a refused request again with the key as it is then, as it must without an overlap.
        answers: The number of responses by status; several consumers may count together.
    """

    base_url: str
    read: Callable[[], Awaitable[str]]
    per_second: float
    cache_seconds: float = CACHE_SECONDS
    credential: str | None = None
    retries: bool = False
    answers: Counter[int] = field(default_factory=Counter)
    _key: str = field(default="", init=False, repr=False)
    _read_at: float = field(default=float("-inf"), init=False, repr=False)

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return self.answers.total() - self.answers[httpx.codes.OK]

    async def work(self) -> None:
        """Send requests until this is cancelled."""
        # Certificates are not loaded: each client would need memory for them, and the stand-in speaks plain HTTP.
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, verify=False) as client:  # noqa: S501
            while True:
                begun = time.monotonic()
                await self.use_key(client)
                await asyncio.sleep(max(0.0, begun + 1 / self.per_second - time.monotonic()))

    async def use_key(self, client: httpx.AsyncClient) -> None:
        """Read the key if it is no longer cached, send one request, and count its response."""
        if time.monotonic() - self._read_at > self.cache_seconds:
            self._key, self._read_at = await self.read(), time.monotonic()
        status = await ask(client, self.base_url, self._key, self.credential)
        if self.retries and status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            self._key = await self.read()
            status = await ask(client, self.base_url, self._key, self.credential)
        self.answers[status] += 1
