"""What the demo leaves a person with."""

from __future__ import annotations

import httpx
from pydantic import SecretStr
from rich.console import Console

from sandbox.demo import Consumer, dead_keys_named, keep_provider_key_for, show
from sandbox.openrouter import create_app
from sandbox.openrouter_account import OpenRouterSandbox, StoredKey
from sandbox.server import running


def a_key(openrouter: OpenRouterSandbox) -> StoredKey:
    """A key of the account."""
    return openrouter.add_key(openrouter.accounts[0], {"name": "a key"})


def test_the_demo_ends_with_what_its_words_mean_and_where_to_go_on() -> None:
    """One line each, after the table, in a terminal of usual width."""
    console = Console(record=True, width=100)

    show(console, OpenRouterSandbox(), Consumer("http://127.0.0.1", ""), 1.0)

    first, second, last = console.export_text().rstrip().splitlines()[-3:]
    assert first.startswith("superseded: ")
    assert second.startswith("overlap: ")
    assert "make up" in last
    assert "docs/tutorial/first-rotation.md" in last


async def test_the_consumer_notices_a_successor_that_may_not_use_the_provider_key() -> None:
    """It fails with a key that works, but that took no place on the list, and the demo says that something is wrong."""
    openrouter = OpenRouterSandbox()
    first, successor = a_key(openrouter), a_key(openrouter)
    credential = keep_provider_key_for(openrouter, [first])

    with running(create_app(openrouter)) as url:
        consumer = Consumer(f"{url}/api/v1", credential)
        async with httpx.AsyncClient() as client:
            await consumer.ask(client, SecretStr(first.secret))
            failed_before = consumer.failed
            await consumer.ask(client, SecretStr(successor.secret))

    assert (failed_before, consumer.failed) == (0, 1)
    assert not show(Console(record=True, width=100), openrouter, consumer, 1.0)


def test_the_demo_counts_the_dead_keys_that_a_list_still_names() -> None:
    """A key that dies on the list stays there until somebody takes it out."""
    openrouter = OpenRouterSandbox()
    first, second = a_key(openrouter), a_key(openrouter)
    keep_provider_key_for(openrouter, [first, second])

    openrouter.delete_key(first)

    assert dead_keys_named(openrouter) == 1
