"""Disable before delete, and bring back: judged by OpenRouter's own client and by Vault's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

import blocks
from sandbox import infisical
from sandbox.server import Fault, running
from tasks.model.events import Event
from tests.tasks.conftest import Life

DISABLE = {"revoke": "disable-then-delete", "disabled_for": timedelta(days=3)}


@pytest.fixture
async def infisical_secret() -> AsyncIterator[blocks.InfisicalSecret]:
    """A secret in Infisical."""
    with running(infisical.create_app(infisical.InfisicalSandbox())) as url:
        login = {"client_id": infisical.CLIENT_ID, "client_secret": infisical.CLIENT_SECRET}
        credentials = blocks.InfisicalCredentials(host=url, **login)
        secret = blocks.InfisicalSecret(
            credentials=credentials, project_id=infisical.PROJECT_ID, environment="prod", name="KEY"
        )
        yield secret
        await secret.aclose()


async def with_a_disabled_key(life: Life) -> str:
    """A rotation whose former key is disabled; its hash."""
    life.change(retirement=DISABLE)
    await life.rotate()
    await life.rotate()
    former = life.superseded.hash
    life.later(hours=24)
    said = await life.retire()
    assert said.startswith(f"Disabled {life.superseded.label}")
    return former


async def test_a_superseded_key_is_disabled_first_and_deleted_later(life: Life) -> None:
    """For three days the key is dead to consumers and can be brought back; then it is gone."""
    former = await with_a_disabled_key(life)
    with life.sdk() as sdk:
        disabled = sdk.api_keys.get(hash=former).data.disabled
    refused = life.use(life.key(former))

    life.later(days=3)
    await life.retire()

    assert (disabled, refused) == (True, 401)
    assert former in life.openrouter.deleted
    assert life.ledger.superseded == ()


async def test_the_deletion_of_a_disabled_key_is_scheduled(life: Life) -> None:
    """A run of retire is planned for the end of the time in which the key can be brought back."""
    await with_a_disabled_key(life)

    assert life.retirements[-1] == life.time + timedelta(days=3) == life.superseded.revoke_at


async def test_a_disabled_key_comes_back_to_every_consumer(life: Life) -> None:
    """restore-key enables the key, publishes it from Vault's older version, and supersedes the key in between."""
    former = await with_a_disabled_key(life)
    between = (await life.held()).hash

    await life.restore()

    with life.sdk() as sdk:
        shown = sdk.api_keys.get(hash=former).data
    assert life.in_vault() == life.key(former).secret
    assert shown.disabled is False
    assert life.use(life.key(former)) == 200
    assert life.ledger.current is not None
    assert life.ledger.current.hash == former
    assert [key.hash for key in life.ledger.superseded] == [between]
    assert Event.KEY_RESTORED in [event for event, _ in life.events]


async def test_the_key_in_between_can_be_restored_in_its_turn(life: Life) -> None:
    """A restore can be undone by another one, as long as both keys are alive."""
    await with_a_disabled_key(life)
    between = (await life.held()).hash
    await life.restore()

    await life.restore()

    assert (await life.held()).hash == between


async def test_a_chosen_key_is_brought_back(life: Life) -> None:
    """Among several superseded keys the label says which one."""
    life.change(retirement=DISABLE, overlap=timedelta(days=30))
    await life.rotate()
    first = await life.held()
    await life.rotate()
    await life.rotate()

    await life.restore(first.label)

    assert (await life.held()).hash == first.hash


async def test_a_destination_that_keeps_no_versions_is_told_before_anything_is_touched(
    life: Life, infisical_secret: blocks.InfisicalSecret
) -> None:
    """Where only Infisical held the key, restore-key says so and changes nothing."""
    life.block = infisical_secret
    former = await with_a_disabled_key(life)
    before = life.everything(), await life.held()

    sentence = await life.failure(life.restore())

    assert (
        "Vault keeps only the newest versions of a secret, and other stores keep none. Nothing was changed." in sentence
    )
    assert (life.everything(), await life.held()) == before
    assert life.key(former).disabled


async def test_a_key_that_was_deleted_by_hand_cannot_come_back(life: Life) -> None:
    """Consumers keep the current key, and the sentence says so."""
    former = await with_a_disabled_key(life)
    current = (await life.held()).hash
    life.openrouter.delete_key(life.key(former))

    sentence = await life.failure(life.restore())

    assert "does not have the key" in sentence
    assert (await life.held()).hash == current


async def test_a_restored_key_that_is_not_enabled_is_not_published(life: Life) -> None:
    """If OpenRouter does not enable the key, no destination gets it."""
    await with_a_disabled_key(life)
    current = (await life.held()).hash
    life.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=403))

    await life.failure(life.restore())

    assert (await life.held()).hash == current


async def test_the_next_rotation_after_a_restore_is_like_any_other(life: Life) -> None:
    """The restored key is superseded by the next one, with its overlap."""
    former = await with_a_disabled_key(life)
    await life.restore()

    await life.rotate()

    assert former in [key.hash for key in life.ledger.superseded]
    assert (await life.held()).hash not in {former, *(key.hash for key in life.ledger.superseded)}


async def test_the_replaced_key_keeps_its_overlap(life: Life) -> None:
    """Whoever has cached it needs the time, however long disabled keys are kept."""
    life.change(retirement={**DISABLE, "disabled_for": timedelta(0)})
    await life.rotate()
    await life.rotate()

    await life.restore()

    assert life.superseded.revoke_at == life.time + life.rotation.overlap


async def test_a_restored_key_gets_the_settings_of_the_one_that_it_replaces(life: Life) -> None:
    """Guardrail and limit were changed since; no unguarded key reaches a consumer."""
    life.change(retirement=DISABLE)
    await life.rotate()
    with life.sdk() as sdk:
        rail = str(sdk.guardrails.create(name="guardrail").data.id)
    life.change(key={"guardrail_id": rail, "limit_usd": 75})
    await life.rotate()

    await life.restore()

    held = await life.held()
    assert held.limit == 75
    assert await life.client.guardrail_of(held.hash) == rail


async def test_a_restored_key_that_has_an_end_says_so(life: Life) -> None:
    """It would otherwise end unnoticed."""
    life.change(key={"expires_after": timedelta(days=10)})
    await life.rotate()
    end = life.time + timedelta(days=10)
    life.change(key={"expires_after": None})
    await life.rotate()

    await life.restore()

    assert f"ends at {end:%Y-%m-%d %H:%M} UTC: rotate before that." in " ".join(life.notes)


@pytest.mark.parametrize("by_label", [False, True], ids=["the last one", "by label"])
async def test_a_retry_of_a_finished_restore_changes_nothing(life: Life, by_label: bool) -> None:
    """Retry finishes the same restore: the key that it brought back stays."""
    former = await with_a_disabled_key(life)
    label, run_id = life.superseded.label if by_label else "", uuid4()
    await life.restore(label, run_id=run_id)

    life.later(minutes=5)
    await life.restore(label, run_id=run_id, attempt=2)

    assert (await life.held()).hash == former


async def test_a_retry_of_a_restore_is_out_of_date_once_the_rotation_has_gone_on(life: Life) -> None:
    """Whoever retries an old restore is told so, and consumers keep the key of the later rotation."""
    await with_a_disabled_key(life)
    first_started, run_id = life.time, uuid4()
    life.later(minutes=5)
    await life.rotate()
    current = (await life.held()).hash

    said = await life.restore(run_id=run_id, attempt=2, first_started=first_started)

    assert "a later run has already rotated" in said
    assert (await life.held()).hash == current


async def test_an_enabled_key_that_is_late_is_waited_for(life: Life) -> None:
    """A key may take some seconds to be accepted after it was enabled."""
    former = await with_a_disabled_key(life)
    refusal = '{"error": {"code": 401, "message": "not yet"}}'
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=401, body=refusal, times=2))

    await life.restore()

    assert (await life.held()).hash == former


@pytest.mark.parametrize("label", ["", "sk-or-v1-000...0000"])
async def test_nothing_to_bring_back_is_said_plainly(life: Life, label: str) -> None:
    """Without a superseded key no label is to blame."""
    await life.rotate()

    assert await life.failure(life.restore(label)) == (
        "Nothing to restore: rotation checkout has no superseded key (an emergency deletes all older keys). "
        "Nothing was changed."
    )


async def test_a_label_of_no_superseded_key_is_refused_with_those_there_are(life: Life) -> None:
    """Whoever mistyped it can copy the right one, and what was typed is not shown: it may be a key."""
    await life.rotate()
    await life.rotate()

    assert await life.failure(life.restore("sk-or-v1-0e6...1c96")) == (
        f"label: it is not that of a superseded key of rotation checkout; those are {life.superseded.label}. "
        "Nothing was changed."
    )
