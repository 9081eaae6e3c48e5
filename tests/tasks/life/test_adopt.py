"""An existing key comes under rotation."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import SecretStr

from sandbox.openrouter_account import StoredKey
from tasks.model.keys import label_agrees, marker
from tests.memory import Memory
from tests.tasks.conftest import Life


def existing(life: Life, **fields: object) -> StoredKey:
    """A key that somebody made by hand."""
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": "by hand", **fields})


async def publish(life: Life, secret: str) -> None:
    """Somebody put a secret into the destination by hand."""
    await life.block.awrite_secret(secret.encode())


async def test_an_adopted_key_is_superseded_by_the_first_rotation_with_the_usual_overlap(life: Life) -> None:
    """The key that consumers have had all along works until its overlap ends, and dies then."""
    former = existing(life)
    await publish(life, former.secret)
    life.change(adopt=former.hash)

    await life.rotate()

    within = life.use(former)
    life.later(hours=24)
    await life.retire()
    assert within == 200
    assert former.hash in life.openrouter.deleted
    assert life.openrouter.is_live((await life.held()).secret)


async def test_without_adoption_a_foreign_key_is_reported_and_never_revoked(life: Life) -> None:
    """What the destination held stays alive, and the report says so."""
    former = existing(life)
    await publish(life, former.secret)

    await life.rotate()

    noted = life.notes
    life.later(days=365)
    await life.retire()
    await life.rotate()
    assert noted == [
        "vault-secret/checkout held a secret that this rotation did not make; it was replaced there and is not revoked."
    ]
    assert life.openrouter.is_live(former.secret)
    assert former.hash not in [key.hash for key in life.ledger.superseded]


async def test_a_key_can_be_adopted_before_any_destination_holds_it(life: Life) -> None:
    """An empty destination does not keep a key from being adopted."""
    former = existing(life)
    life.change(adopt=former.hash)

    await life.rotate()

    assert life.superseded.hash == former.hash


async def test_a_key_that_another_rotation_has_adopted_is_left_to_it(life: Life) -> None:
    """Otherwise one rotation would end the key that the other one's consumers use."""
    former = existing(life)
    life.other_stores["other"] = Memory()
    life.other_stores["other"].value = {"format": 1, "current": {"hash": former.hash}}
    life.change(adopt=former.hash)

    sentence = await life.failure(life.rotate())

    assert "belongs to the rotation other already. Nothing was created." in sentence


async def test_an_adopted_key_ends_after_its_ledger_was_lost(life: Life) -> None:
    """The key that replaced it is at the destination: that is no reason to stop."""
    former = existing(life)
    await publish(life, former.secret)
    life.change(adopt=former.hash)
    await life.rotate()
    life.store.value = None

    await life.rotate()
    life.later(days=2)
    await life.rotate()

    assert former.hash in life.openrouter.deleted


async def test_the_hash_may_stay_on_the_rotation(life: Life) -> None:
    """Later rotations take no notice of a key that was adopted and revoked long ago."""
    former = existing(life)
    life.change(adopt=former.hash, overlap=timedelta(0))
    await life.rotate()

    await life.rotate()

    assert former.hash in life.openrouter.deleted
    assert len(life.openrouter.live_keys()) == 1


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no such key", "no key with this hash"),
        ("another account's", "no key with this hash"),
        ("another rotation's", "belongs to the rotation other already"),
        ("the destination holds another key", "holds another key than"),
    ],
)
async def test_what_cannot_be_adopted_is_refused_before_anything_is_created(life: Life, case: str, words: str) -> None:
    """One sentence names the field; no key is made and nothing is published."""
    account = life.openrouter.accounts[0]
    if case == "another account's":
        account = life.openrouter.add_account("sk-or-v1-another")
    name = f"{marker('other', next(iter(life.runs), __import__('uuid').uuid4()))}x" if "rotation" in case else "by hand"
    former = life.openrouter.add_key(account, {"name": name})
    if case.startswith("the destination"):
        await publish(life, existing(life).secret)
    created = len(life.openrouter.created)
    life.change(adopt="0" * 64 if case == "no such key" else former.hash)

    sentence = await life.failure(life.rotate())

    assert sentence.startswith("rotation.adopt: ")
    assert words in sentence
    assert sentence.endswith("Nothing was created.")
    assert len(life.openrouter.created) == created


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
    """Beginning and end tell; a secret that is no key of OpenRouter tells nothing."""
    assert label_agrees(label, None if secret is None else SecretStr(secret)) is agrees
