"""The demo's summary, and the failures that it must report."""

from __future__ import annotations

import httpx
from rich.console import Console

from sandbox.consumers import Consumer
from sandbox.demo import dead_keys_named, keep_provider_key_for, show
from sandbox.openrouter import create_app
from sandbox.openrouter_account import OpenRouterSandbox, StoredKey
from sandbox.server import running


def a_key(openrouter: OpenRouterSandbox) -> StoredKey:
    """Create a key in the first account."""
    return openrouter.add_key(openrouter.accounts[0], {"name": "a key"})


def reads(base_url: str, *keys: StoredKey, credential: str | None = None) -> Consumer:
    """Return a consumer that reads one key after the other, for each request anew."""
    secrets = iter(keys)

    async def read() -> str:
        return next(secrets).secret

    return Consumer(base_url, read, per_second=1, cache_seconds=-1, credential=credential)


def test_the_demo_ends_with_what_its_words_mean_and_where_to_go_on() -> None:
    """The last three lines explain the terms and name the next step; each fits into a terminal of 100 columns."""
    console = Console(record=True, width=100)

    show(console, OpenRouterSandbox(), reads("http://127.0.0.1"), 1.0)

    first, second, last = console.export_text().rstrip().splitlines()[-3:]
    assert first.startswith("superseded: ")
    assert second.startswith("overlap: ")
    assert "make up" in last
    assert "docs/tutorial/first-rotation.md" in last


async def test_the_consumer_notices_a_successor_that_may_not_use_the_provider_key() -> None:
    """A valid successor that the credential does not list fails its requests, and the demo must report that."""
    openrouter = OpenRouterSandbox()
    first, successor = a_key(openrouter), a_key(openrouter)
    credential = keep_provider_key_for(openrouter, [first])

    with running(create_app(openrouter)) as url:
        consumer = reads(f"{url}/api/v1", first, successor, credential=credential)
        async with httpx.AsyncClient() as client:
            await consumer.use_key(client)
            failed_before = consumer.failed
            await consumer.use_key(client)

    assert (failed_before, consumer.failed) == (0, 1)
    assert not show(Console(record=True, width=100), openrouter, consumer, 1.0)


def test_the_demo_counts_the_dead_keys_that_a_list_still_names() -> None:
    """The stand-in leaves a deleted key in the lists that name it."""
    openrouter = OpenRouterSandbox()
    first, second = a_key(openrouter), a_key(openrouter)
    keep_provider_key_for(openrouter, [first, second])

    openrouter.delete_key(first)

    assert dead_keys_named(openrouter) == 1
