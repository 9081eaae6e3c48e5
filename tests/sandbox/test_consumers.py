"""The applications that use a key while it is rotated."""

from __future__ import annotations

import httpx

from sandbox.consumers import Consumer
from sandbox.openrouter import create_app
from sandbox.openrouter_account import OpenRouterSandbox
from sandbox.server import running


async def test_a_consumer_uses_a_key_until_its_cache_ends() -> None:
    """A rotation must expect that of every consumer: its overlap is there for those that cached the former key."""
    openrouter, read = OpenRouterSandbox(), 0
    key = openrouter.add_key(openrouter.accounts[0], {"name": "a key"})

    async def read_key() -> str:
        nonlocal read
        read += 1
        return key.secret

    with running(create_app(openrouter)) as url:
        caches = Consumer(f"{url}/api/v1", read_key, per_second=1, cache_seconds=3600)
        async with httpx.AsyncClient() as client:
            await caches.use_key(client)
            await caches.use_key(client)

    assert (caches.answers, read) == ({httpx.codes.OK: 2}, 1)


async def test_a_consumer_that_retries_asks_again_with_the_key_as_it_is_then() -> None:
    """Without an overlap, the cached key ends when the next one is there; one that does not retry counts a failure."""
    openrouter = OpenRouterSandbox()
    former, current = (openrouter.add_key(openrouter.accounts[0], {"name": "a key"}) for _ in range(2))
    openrouter.delete_key(former)
    held = [former.secret, current.secret, former.secret]

    async def read_key() -> str:
        return held.pop(0)

    with running(create_app(openrouter)) as url:
        retries = Consumer(f"{url}/api/v1", read_key, per_second=1, retries=True)
        does_not = Consumer(f"{url}/api/v1", read_key, per_second=1)
        async with httpx.AsyncClient() as client:
            await retries.use_key(client)
            await does_not.use_key(client)

    assert (retries.answers, does_not.answers) == ({httpx.codes.OK: 1}, {httpx.codes.UNAUTHORIZED: 1})
