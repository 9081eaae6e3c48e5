"""Put keys, and lists that name them, into an account."""

from __future__ import annotations

from typing import Any

from blocks.openrouter.lists import ListKind
from sandbox.openrouter_account import StoredKey
from tests.tasks.conftest import FakeWorld

KINDS = list(ListKind)


async def with_first_key(world: FakeWorld, **settings: Any) -> StoredKey:
    """Run a rotation with inherit for the first time, and return its key."""
    world.change(key={"inherit": True}, **settings)
    await world.rotate()
    return await world.held()


def restrict(world: FakeWorld, kind: ListKind, *hashes: str, **fields: Any) -> dict[str, Any]:
    """Add a credential or a destination that is restricted to some keys."""
    account = world.openrouter.accounts[0]
    add = world.openrouter.add_credential if kind is ListKind.BYOK else world.openrouter.add_broadcast
    return add(account, account.workspaces[0], name="production", **{kind.field: list(hashes)}, **fields)


async def with_listed_key(world: FakeWorld, kind: ListKind) -> tuple[StoredKey, str, dict[str, Any]]:
    """Rotate without inherit for the first time; return the key, somebody else's, and a list that names both."""
    await world.rotate()
    mine, theirs = await world.held(), other_key(world)
    return mine, theirs, restrict(world, kind, mine.hash, theirs)


def other_key(world: FakeWorld) -> str:
    """Create a key of somebody else, and return its hash."""
    return world.openrouter.add_key(world.openrouter.accounts[0], {"name": "somebody else's"}).hash
