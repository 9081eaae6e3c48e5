"""Disable before delete, and restore: verified with OpenRouter's own client and with Vault's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic import SecretStr

import blocks
from blocks.destination import Content, Destination
from blocks.errors import UnreachableError
from flows.restore_key import restore
from sandbox import infisical
from sandbox.server import Fault, running
from tasks.model.events import Event
from tasks.steps import PLAIN
from tasks.world.run import Run, VerifiedKey
from tests.tasks.conftest import FakeWorld

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


async def with_a_disabled_key(world: FakeWorld) -> str:
    """Rotate so that the former key is disabled, and return its hash."""
    world.change(retirement=DISABLE)
    await world.rotate()
    await world.rotate()
    former = world.superseded.hash
    world.later(hours=24)
    said = await world.retire()
    assert said.startswith(f"Disabled {world.superseded.label}")
    return former


async def test_a_superseded_key_is_disabled_first_and_deleted_later(world: FakeWorld) -> None:
    """For three days consumers cannot use the key, but it can be restored; then it is deleted."""
    former = await with_a_disabled_key(world)
    with world.sdk() as sdk:
        disabled = sdk.api_keys.get(hash=former).data.disabled
    refused = world.use(world.key(former))

    world.later(days=3)
    await world.retire()

    assert (disabled, refused) == (True, 401)
    assert former in world.openrouter.deleted
    assert world.ledger.superseded == ()


async def test_the_deletion_of_a_disabled_key_is_scheduled(world: FakeWorld) -> None:
    """A retirement is scheduled for the end of the time in which the key can be restored."""
    await with_a_disabled_key(world)

    assert world.retirements[-1] == world.time + timedelta(days=3) == world.superseded.revoke_at


async def test_a_disabled_key_comes_back_to_every_consumer(world: FakeWorld) -> None:
    """restore-key enables it, publishes it from an older version in Vault, and supersedes the key in between."""
    former = await with_a_disabled_key(world)
    between = (await world.held()).hash

    await world.restore()

    with world.sdk() as sdk:
        shown = sdk.api_keys.get(hash=former).data
    assert world.in_vault() == world.key(former).secret
    assert shown.disabled is False
    assert world.use(world.key(former)) == 200
    assert world.ledger.current is not None
    assert world.ledger.current.hash == former
    assert [key.hash for key in world.ledger.superseded] == [between]
    assert Event.KEY_RESTORED in [event for event, _ in world.events]


async def test_the_key_in_between_can_be_restored_in_its_turn(world: FakeWorld) -> None:
    """A restore can be undone by another one while both keys exist."""
    await with_a_disabled_key(world)
    between = (await world.held()).hash
    await world.restore()

    await world.restore()

    assert (await world.held()).hash == between


async def test_a_chosen_key_is_brought_back(world: FakeWorld) -> None:
    """Among several superseded keys, the label identifies the one to restore."""
    world.change(retirement=DISABLE, overlap=timedelta(days=30))
    await world.rotate()
    first = await world.held()
    await world.rotate()
    await world.rotate()

    await world.restore(first.label)

    assert (await world.held()).hash == first.hash


async def test_a_destination_that_keeps_no_versions_is_told_before_anything_is_touched(
    world: FakeWorld, infisical_secret: blocks.InfisicalSecret
) -> None:
    """Given that only Infisical, without versions, held the key, restore-key says so and changes nothing."""
    world.block = infisical_secret
    former = await with_a_disabled_key(world)
    before = world.everything(), await world.held()

    sentence = await world.failure(world.restore())

    assert (
        "Vault keeps only the newest versions of a secret, and other stores keep none. Nothing was changed." in sentence
    )
    assert (world.everything(), await world.held()) == before
    assert world.key(former).disabled


async def test_a_key_that_was_deleted_by_hand_cannot_come_back(world: FakeWorld) -> None:
    """Consumers keep the current key, and the message says so."""
    former = await with_a_disabled_key(world)
    current = (await world.held()).hash
    world.openrouter.delete_key(world.key(former))

    sentence = await world.failure(world.restore())

    assert "does not exist at OpenRouter" in sentence
    assert (await world.held()).hash == current


async def test_a_restored_key_that_is_not_enabled_is_not_published(world: FakeWorld) -> None:
    """A destination must not get a key that OpenRouter has not enabled."""
    await with_a_disabled_key(world)
    current = (await world.held()).hash
    world.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=403))

    await world.failure(world.restore())

    assert (await world.held()).hash == current


async def test_the_next_rotation_after_a_restore_is_like_any_other(world: FakeWorld) -> None:
    """The next rotation supersedes the restored key with the usual overlap."""
    former = await with_a_disabled_key(world)
    await world.restore()

    await world.rotate()

    assert former in [key.hash for key in world.ledger.superseded]
    assert (await world.held()).hash not in {former, *(key.hash for key in world.ledger.superseded)}


async def test_the_replaced_key_keeps_its_overlap(world: FakeWorld) -> None:
    """A consumer that has cached it needs that time, however long disabled keys are kept."""
    world.change(retirement={**DISABLE, "disabled_for": timedelta(0)})
    await world.rotate()
    await world.rotate()

    await world.restore()

    assert world.superseded.revoke_at == world.time + world.rotation.overlap


async def test_a_restored_key_gets_the_settings_of_the_one_that_it_replaces(world: FakeWorld) -> None:
    """Guardrail and limit have changed since; consumers must not get a key without them."""
    world.change(retirement=DISABLE)
    await world.rotate()
    with world.sdk() as sdk:
        rail = str(sdk.guardrails.create(name="guardrail").data.id)
    world.change(key={"guardrail_id": rail, "limit_usd": 75})
    await world.rotate()

    await world.restore()

    held = await world.held()
    assert held.limit == 75
    assert await world.client.guardrail_of(held.hash) == rail


async def test_a_restored_key_that_has_an_end_says_so(world: FakeWorld) -> None:
    """Otherwise the key would expire unnoticed."""
    world.change(key={"expires_after": timedelta(days=10)})
    await world.rotate()
    end = world.time + timedelta(days=10)
    world.change(key={"expires_after": None})
    await world.rotate()

    message = await world.restore()

    assert f"expires at {end:%Y-%m-%d %H:%M} UTC: rotate before that." in message


@pytest.mark.parametrize("by_label", [False, True], ids=["the last one", "by label"])
async def test_a_retry_of_a_finished_restore_changes_nothing(world: FakeWorld, by_label: bool) -> None:
    """A Retry completes the same restore, so the restored key stays current."""
    former = await with_a_disabled_key(world)
    label, run_id = world.superseded.label if by_label else "", uuid4()
    await world.restore(label, run_id=run_id)

    world.later(minutes=5)
    await world.restore(label, run_id=run_id, attempt=2)

    assert (await world.held()).hash == former


async def test_a_retry_of_a_restore_is_out_of_date_once_the_rotation_has_gone_on(world: FakeWorld) -> None:
    """The Retry of an old restore fails with that reason, and consumers keep the key of the later rotation."""
    await with_a_disabled_key(world)
    first_started, run_id = world.time, uuid4()
    world.later(minutes=5)
    await world.rotate()
    current = (await world.held()).hash

    said = await world.restore(run_id=run_id, attempt=2, first_started=first_started)

    assert "a later run has already rotated" in said
    assert (await world.held()).hash == current


async def test_an_enabled_key_that_is_late_is_waited_for(world: FakeWorld) -> None:
    """After it was enabled, OpenRouter may take some seconds to accept a key."""
    former = await with_a_disabled_key(world)
    refusal = '{"error": {"code": 401, "message": "not yet"}}'
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=401, body=refusal, times=2))

    await world.restore()

    assert (await world.held()).hash == former


@pytest.mark.parametrize("label", ["", "sk-or-v1-000...0000"])
async def test_nothing_to_bring_back_is_said_plainly(world: FakeWorld, label: str) -> None:
    """Without a superseded key, the message does not blame the label."""
    await world.rotate()

    assert await world.failure(world.restore(label)) == (
        "Nothing to restore: rotation checkout has no superseded key (an emergency deletes all older keys). "
        "Nothing was changed."
    )


async def test_a_label_of_no_superseded_key_is_refused_with_those_there_are(world: FakeWorld) -> None:
    """The message lists the valid labels, and does not quote the input, which may be a key."""
    await world.rotate()
    await world.rotate()

    assert await world.failure(world.restore("sk-or-v1-0e6...1c96")) == (
        "label: rotation checkout has no superseded key with this label; its superseded keys are "
        f"{world.superseded.label}. "
        "Nothing was changed."
    )


class Forgetful(Destination):
    """A store without check-and-set, such as another package's block, that keeps older versions.

    The answer to its next write is lost, and that write may still take effect until `late_writes` has passed.
    """

    late_writes = timedelta(minutes=15)

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.is_lost = False

    def place(self) -> str:
        """Return its place."""
        return "the store"

    async def read_content(self) -> Content:
        """Read the newest version."""
        return Content(SecretStr(self.versions[-1]) if self.versions else None)

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Add a version, or lose the answer."""
        if self.is_lost:
            self.is_lost = False
            raise UnreachableError("The store did not answer in time.", outcome_unknown=True, retryable=True)
        self.versions.append(value.get_secret_value())

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        """Return an older version that is wanted."""
        return next((SecretStr(each) for each in self.versions if is_wanted(SecretStr(each))), None)


@pytest.fixture
def store(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> Forgetful:
    """A store that stands for every destination."""
    found = Forgetful()

    async def destination(_name: str) -> Destination:
        return found

    monkeypatch.setattr(world, "destination", destination)
    return found


async def test_a_restored_key_is_not_deleted_before_its_late_write_is_kept_out(
    world: FakeWorld, store: Forgetful
) -> None:
    """Given a write of it whose answer was lost, the next rotation keeps it as long as that write may take effect."""
    await world.rotate()
    await world.rotate()
    store.is_lost = True
    await world.restore()
    restored = world.openrouter.by_secret[store.versions[-1]]
    world.change(overlap=timedelta(0))

    await world.rotate()
    within_its_window = restored.hash in world.openrouter.keys
    world.later(minutes=15)
    await world.retire()

    assert (within_its_window, restored.hash in world.openrouter.keys) == (True, False)


async def test_a_key_restored_by_a_retry_is_not_deleted_before_the_first_attempts_write_is_kept_out(
    world: FakeWorld, store: Forgetful
) -> None:
    """Given an attempt that ended with a write of unknown outcome, its Retry expects a late effect of that write."""

    async def publish(run: Run, key: VerifiedKey, _name: str) -> None:
        store.is_lost = True
        await run.write_to(store, key.secret, await store.read_content(), {})

    await world.rotate()
    await world.rotate()
    first = world.open(run_id=(run_id := uuid4()))
    await world.failure(restore(first, "", PLAIN._replace(publish=publish)))
    await world.restore(run_id=run_id, attempt=2)
    restored = world.openrouter.by_secret[store.versions[-1]]
    world.change(overlap=timedelta(0))

    await world.rotate()

    assert restored.hash in world.openrouter.keys
