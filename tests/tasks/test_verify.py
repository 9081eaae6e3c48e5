"""A new key is compared with what was requested before it is published."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.openrouter_account import Account, StoredKey
from tasks.model.keys import read_marker
from tests.tasks.conftest import FakeWorld


def names_become(world: FakeWorld, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Make OpenRouter store another name than it was given."""
    add_key = world.openrouter.add_key

    def added(account: Account, body: dict[str, Any]) -> StoredKey:
        return add_key(account, {**body, "name": change(body["name"])})

    monkeypatch.setattr(world.openrouter, "add_key", added)


CHANGES = {
    "cut behind the marker": lambda name: name[:-12],
    "cut within the marker": lambda name: name[:30],
    "without its marker": lambda _name: "checkout service",
    "of another run": lambda name: name.replace("a", "b").replace("1", "2"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_name_that_was_cut_or_changed_fails_before_anything_is_published(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    """Given an account that stores names otherwise, the run fails, and consumers still read the former key."""
    await world.rotate()
    former = (await world.held()).hash
    names_become(world, monkeypatch, change)

    sentence = await world.failure(world.rotate())

    assert (await world.held()).hash == former
    assert "OpenRouter stored the name of the key" in sentence
    assert change("(rotation checkout")[:15] in sentence


async def test_the_key_with_the_wrong_name_is_deleted_by_the_next_run(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger has its hash, so the key is found without its marker."""
    with monkeypatch.context() as patched:
        names_become(world, patched, CHANGES["without its marker"])
        await world.failure(world.rotate())

    await world.rotate()

    assert [key.hash for key in world.openrouter.live_keys()] == [(await world.held()).hash]


async def test_a_stored_name_that_looks_like_a_key_is_not_shown(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenRouter's answer is untrusted input: the message masks a key in it, and stays on one line."""
    stored = f"sk-or-v1-{'5' * 64}\nname"
    names_become(world, monkeypatch, lambda _name: stored)

    sentence = await world.failure(world.rotate())

    assert "5" * 21 not in sentence
    assert "\n" not in sentence


async def test_a_half_published_key_of_an_earlier_version_is_finished(world: FakeWorld) -> None:
    """Given a marker at the end of the name, as in earlier versions, the next run finishes the same key."""
    await world.rotate()
    value = world.store.value
    current = value.pop("current")
    pending_key = {name: current[name] for name in ("hash", "label", "fingerprint", "made_by", "connection")}
    pending_key["workspace_id"] = current["workspace_id"]
    world.store.value = value | {
        "pending": {
            "run_id": current["made_by"],
            "connection": "openrouter",
            "destinations": current["destinations"],
            "intended_at": current["since"],
            "terms": current["terms"],
            "key": pending_key,
        }
    }
    key = world.key(current["hash"])
    marker, _, rest = key.name.partition("] ")
    key.name = f"{rest} {marker}]"

    message = await world.rotate()

    assert message.startswith("Finished an interrupted rotation")
    assert read_marker(key.name) is not None
    assert (await world.held()).hash == key.hash
