"""An existing key comes under rotation."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import SecretStr

from sandbox.openrouter_account import StoredKey
from tasks.model.keys import label_agrees, marker
from tests.memory import Memory
from tests.tasks.conftest import FakeWorld


def existing(world: FakeWorld, **fields: object) -> StoredKey:
    """Add a key that a person created by hand."""
    return world.openrouter.add_key(world.openrouter.accounts[0], {"name": "by hand", **fields})


async def publish(world: FakeWorld, secret: str) -> None:
    """Write a secret into the destination by hand."""
    await world.block.awrite_secret(secret.encode())


async def test_an_adopted_key_is_superseded_by_the_first_rotation_with_the_usual_overlap(world: FakeWorld) -> None:
    """The key that consumers already have works until its overlap ends, and is revoked then."""
    former = existing(world)
    await publish(world, former.secret)
    world.change(adopt=former.hash)

    await world.rotate()

    within = world.use(former)
    world.later(hours=24)
    await world.retire()
    assert within == 200
    assert former.hash in world.openrouter.deleted
    assert world.openrouter.is_live((await world.held()).secret)


async def test_without_adoption_a_foreign_key_is_reported_and_never_revoked(world: FakeWorld) -> None:
    """The key in the destination stays alive, and the report names it."""
    former = existing(world)
    await publish(world, former.secret)

    await world.rotate()

    noted = world.notes
    world.later(days=365)
    await world.retire()
    await world.rotate()
    assert noted == [
        "vault-secret/checkout held a secret that this rotation did not make; it was replaced there and is not revoked."
    ]
    assert world.openrouter.is_live(former.secret)
    assert former.hash not in [key.hash for key in world.ledger.superseded]


async def test_a_key_can_be_adopted_before_any_destination_holds_it(world: FakeWorld) -> None:
    """An empty destination does not contradict an adoption; only one with another key does."""
    former = existing(world)
    world.change(adopt=former.hash)

    await world.rotate()

    assert world.superseded.hash == former.hash


async def test_a_key_that_another_rotation_has_adopted_is_left_to_it(world: FakeWorld) -> None:
    """Otherwise one rotation would revoke the key that consumers of the other one read."""
    former = existing(world)
    world.other_stores["other"] = Memory()
    world.other_stores["other"].value = {"format": 1, "current": {"hash": former.hash}}
    world.change(adopt=former.hash)

    sentence = await world.failure(world.rotate())

    assert "belongs to the rotation other already. Nothing was created." in sentence


async def test_an_adopted_key_ends_after_its_ledger_was_lost(world: FakeWorld) -> None:
    """The destination holds the key that replaced it, which must not prevent its end."""
    former = existing(world)
    await publish(world, former.secret)
    world.change(adopt=former.hash)
    await world.rotate()
    world.store.value = None

    await world.rotate()
    world.later(days=2)
    await world.rotate()

    assert former.hash in world.openrouter.deleted


async def test_the_hash_may_stay_on_the_rotation(world: FakeWorld) -> None:
    """Later rotations ignore the hash of a key that was adopted and revoked long ago."""
    former = existing(world)
    world.change(adopt=former.hash, overlap=timedelta(0))
    await world.rotate()

    await world.rotate()

    assert former.hash in world.openrouter.deleted
    assert len(world.openrouter.live_keys()) == 1


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no such key", "no key with this hash"),
        ("another account's", "no key with this hash"),
        ("another rotation's", "belongs to the rotation other already"),
        ("the destination holds another key", "another key than"),
    ],
)
async def test_what_cannot_be_adopted_is_refused_before_anything_is_created(
    world: FakeWorld, case: str, words: str
) -> None:
    """One sentence names the field; no key is created and nothing is published."""
    account = world.openrouter.accounts[0]
    if case == "another account's":
        account = world.openrouter.add_account("sk-or-v1-another")
    name = (
        f"{marker('other', next(iter(world.runs), __import__('uuid').uuid4()))}x" if "rotation" in case else "by hand"
    )
    former = world.openrouter.add_key(account, {"name": name})
    if case.startswith("the destination"):
        await publish(world, existing(world).secret)
    created = len(world.openrouter.created)
    world.change(adopt="0" * 64 if case == "no such key" else former.hash)

    sentence = await world.failure(world.rotate())

    assert sentence.startswith("rotation.adopt: ")
    assert words in sentence
    assert sentence.endswith("Nothing was created.")
    assert len(world.openrouter.created) == created


@pytest.mark.parametrize(
    ("label", "secret", "agrees"),
    [
        ("sk-or-v1-0e6...1c96", "sk-or-v1-0e6aaaaaaaa1c96", True),
        ("sk-or-v1-0e6...1c96", "sk-or-v1-0e6aaaaaaaa1c97", False),
        ("sk-or-v1-0e6...1c96", "sk-or-v1-1e6aaaaaaaa1c96", False),
        ("sk-or-v1-0e6...1c96", "placeholder", None),
        ("sk-or-v1-0e6...1c96", None, None),
    ],
)
def test_a_label_agrees_with_the_key_that_it_abbreviates(label: str, secret: str | None, agrees: bool | None) -> None:
    """Beginning and end must match; about a secret that is no OpenRouter key, a label says nothing."""
    assert label_agrees(label, None if secret is None else SecretStr(secret)) is agrees
