"""Consumers that use a rotation's key at a constant rate."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from bench.measuring import REQUESTS_PER_SECOND, Bench

CACHE_SECONDS = 1.0


async def secret_of(name: str) -> str:
    """Return the key in a destination, as a consumer reads it."""
    from prefect.blocks.system import Secret

    secret: Any = await Secret.aload(name)
    return str(secret.value.get_secret_value())


async def consume(
    bench: Bench, name: str, answers: list[int], *, credential: str | None = None, retries: bool = False
) -> None:
    """Send requests at a constant rate with a secret's key, which is cached for `CACHE_SECONDS`.

    Args:
        bench: The setup.
        name: The secret.
        answers: Where the status of each answer is recorded.
        credential: The BYOK credential that the requests need, if any.
        retries: Whether a refused request is sent again with the secret as it is then, as a consumer must without an
            overlap.
    """
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{bench.openrouter_url}/chat/completions{f'?byok={credential}' if credential else ''}"
    key, read_at = "", float("-inf")
    async with httpx.AsyncClient(timeout=10) as client:
        while True:
            if time.monotonic() - read_at > CACHE_SECONDS:
                key, read_at = await secret_of(name), time.monotonic()
            begun = time.monotonic()
            answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
            if retries and answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                key = await secret_of(name)
                answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
            answers.append(answer.status_code)
            await asyncio.sleep(max(0.0, begun + 1 / REQUESTS_PER_SECOND - time.monotonic()))
