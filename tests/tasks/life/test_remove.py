"""A rotation is removed for good."""

from __future__ import annotations

from datetime import datetime, timedelta
from unittest import mock
from uuid import uuid4

import pytest
from pydantic import SecretStr

from blocks.destination import Destination
from blocks.errors import ConfigurationError
from flows.remove_rotation import check_removal, end_of_keys, parse_keep_until
from sandbox.server import Fault
from tasks.life.remove import plan_removal
from tasks.model.events import Event
from tasks.model.keys import NOT_YET_ROTATED, read_marker
from tasks.model.times import show_time
from tests.tasks.conftest import FakeWorld


async def rotated(world: FakeWorld) -> tuple[str, str]:
    """Rotate twice, and return the hashes of the superseded and the current key."""
    await world.rotate()
    await world.rotate()
    return world.superseded.hash, (await world.held()).hash


async def test_revoke_kills_every_key_and_forgets_the_ledger(world: FakeWorld) -> None:
    """Nothing of the rotation remains, neither at OpenRouter nor in Prefect."""
    await rotated(world)

    await world.remove(world.time)

    assert world.openrouter.keys == {}
    assert world.store.value is None
    assert Event.ROTATION_REMOVED in [event for event, _ in world.events]


async def test_keep_leaves_the_current_key_to_its_user(world: FakeWorld) -> None:
    """The current key lives on without its marker, so that it is not taken for an orphan; older keys end as planned."""
    former, current = await rotated(world)

    await world.remove(None)
    older_alive = former in world.openrouter.keys
    world.later(hours=24)
    await world.retire()

    assert older_alive
    assert list(world.openrouter.keys) == [current]
    assert read_marker(world.key(current).name) is None
    assert world.store.value is None


async def test_keep_until_revokes_the_current_key_on_its_date(world: FakeWorld) -> None:
    """Until then it works, though no deployment exists; then the scheduled run revokes it and closes the ledger."""
    _, current = await rotated(world)
    until = world.time + timedelta(days=10)

    await world.remove(until)
    planned = until in world.retirements
    world.later(days=9)
    await world.retire()
    alive_before = current in world.openrouter.keys
    world.time = until
    await world.retire()

    assert (planned, alive_before) == (True, True)
    assert world.openrouter.keys == {}
    assert world.store.value is None


async def test_no_key_outlives_the_date(world: FakeWorld) -> None:
    """The removal shortens a long overlap."""
    world.change(overlap=timedelta(days=300))
    await rotated(world)
    until = world.time + timedelta(days=1)
    await world.remove(until)

    world.time = until
    await world.retire()

    assert world.openrouter.keys == {}


async def test_a_removal_that_failed_midway_is_finished_by_a_retry(world: FakeWorld) -> None:
    """The ledger still has the keys that remain to be revoked."""
    await rotated(world)
    world.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await world.failure(world.remove(world.time))
    world.app.state.faults.clear()

    await world.remove(world.time)

    assert world.openrouter.keys == {}
    assert world.store.value is None


async def test_an_interrupted_rotation_is_removed_with_its_pending_key(world: FakeWorld) -> None:
    """A key that was created and never published is revoked with the rotation."""
    await world.rotate()
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await world.failure(world.rotate())
    world.app.state.faults.clear()

    await world.remove(world.time)

    assert world.openrouter.keys == {}


async def test_a_key_is_not_kept_while_it_is_not_clear_which_one(world: FakeWorld) -> None:
    """The removal is refused before anything is changed, so a Retry can still finish the rotation."""
    await world.rotate()
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await world.failure(world.rotate())
    world.app.state.faults.clear()
    before = world.store.value

    sentence = await world.failure(world.remove(None))

    assert "is unfinished, so it is unclear which key to keep" in sentence
    assert sentence.endswith("Nothing was changed.")
    assert (world.store.value, world.is_deployed) == (before, True)


def test_a_date_that_is_past_is_refused(world: FakeWorld) -> None:
    """Otherwise a mistyped year would revoke the current key at once."""
    with pytest.raises(ConfigurationError, match=r"^keep_until: must be in the future\. Nothing was changed\.$"):
        end_of_keys(world.open(), world.time - timedelta(days=365), revoke=False)


def test_a_date_too_far_ahead_is_refused(world: FakeWorld) -> None:
    """No scheduler keeps a run for thousands of years; whoever means forever can choose `keep`."""
    with pytest.raises(
        ConfigurationError, match=r"^keep_until: must not be more than 3650 days ahead; .* choose keep\."
    ):
        end_of_keys(world.open(), world.time + timedelta(days=3651), revoke=False)


def test_a_retry_after_the_date_goes_on(world: FakeWorld) -> None:
    """The date was in the future when the removal started."""
    until = world.time + timedelta(days=1)
    run = world.open(first_started=world.time, attempt=2)
    world.later(days=2)

    assert end_of_keys(run, until, revoke=False) == until


async def test_a_kept_key_stays_its_users_when_the_rotation_comes_back(world: FakeWorld) -> None:
    """The new rotation creates its own key and revokes older ones, but not the one that was kept for its user."""
    former, kept = await rotated(world)
    await world.remove(None)

    await world.rotate()
    world.later(days=9)
    await world.retire()

    assert former not in world.openrouter.keys
    assert {key.hash for key in world.openrouter.live_keys()} == {kept, (await world.held()).hash}


async def test_nothing_is_brought_back_from_a_removed_rotation(world: FakeWorld) -> None:
    """Otherwise the kept key would be superseded."""
    await rotated(world)
    await world.remove(None)

    assert "was removed" in await world.failure(world.restore())


@pytest.mark.parametrize("keep_for", [None, timedelta(0), timedelta(days=30)], ids=["keep", "revoke", "keep-until"])
@pytest.mark.parametrize(
    "policy",
    [{"revoke": "disable-then-delete"}, {"retire_when": "unused", "on_still_used": "keep"}],
    ids=["disable-then-delete", "unused"],
)
async def test_older_keys_end_whatever_the_policy_was(
    world: FakeWorld, policy: dict[str, str], keep_for: timedelta | None
) -> None:
    """After the removal, no run could restore such a key, and no person would decide about one that is still in use."""
    world.change(retirement=policy)
    former, _ = await rotated(world)
    await world.remove(None if keep_for is None else world.time + keep_for)

    world.later(hours=24)
    if former in world.openrouter.keys:
        world.spend(world.key(former), "1")
        await world.retire()

    assert former in world.openrouter.deleted


async def test_a_rotation_of_the_same_name_can_be_added_again(world: FakeWorld) -> None:
    """This works while a key of the removed rotation is still kept, too."""
    await rotated(world)
    await world.remove(world.time + timedelta(days=10))

    await world.rotate()
    world.later(days=11)
    await world.retire()

    assert [key.hash for key in world.openrouter.live_keys()] == [(await world.held()).hash]


async def test_removing_what_is_not_there_is_no_error(world: FakeWorld) -> None:
    """A removal can be repeated safely."""
    assert "removed" in await world.remove(world.time)


async def test_a_removal_says_which_key_is_deleted_and_where_it_is_still_read(world: FakeWorld) -> None:
    """Vault still holds the revoked key, so whoever reads it there must move."""
    former, label = (world.key(each).label for each in await rotated(world))

    said = await world.remove(world.time)

    assert f"Deleted at OpenRouter: {former}, {label}." in said
    assert f"may still hold the key {label}, which has ended: move the consumers that read it there." in said


async def test_a_removal_with_a_date_says_what_then_ends_where(world: FakeWorld) -> None:
    """Until then, consumers can be moved."""
    _, current = await rotated(world)
    until = world.time + timedelta(days=10)

    said = await world.remove(until)

    assert f"may still hold the superseded key {world.key(current).label}, which ends at {show_time(until)}" in said


async def test_a_destination_is_emptied_before_its_key_is_deleted(world: FakeWorld) -> None:
    """Nobody reads a revoked key there, and the next rotation of that name can start there."""
    await rotated(world)

    said = await world.remove(world.time, empty=True)
    held = await world.block.read_content()
    await world.rotate()

    assert held.value == SecretStr(NOT_YET_ROTATED)
    assert "No key of the rotation is left in vault-secret/checkout." in said
    assert "may still hold" not in said
    assert len(world.openrouter.live_keys()) == 1


async def test_what_somebody_else_has_put_into_a_destination_is_not_emptied(world: FakeWorld) -> None:
    """Only keys of the rotation are replaced by the placeholder."""
    await rotated(world)
    await world.block.write_content(SecretStr("a password"), await world.block.read_content(), {})

    await world.remove(world.time, empty=True)

    assert (await world.block.read_content()).value == SecretStr("a password")


async def test_no_key_is_deleted_while_a_destination_cannot_be_emptied(world: FakeWorld) -> None:
    """The removal fails before it revokes a key, and a Retry continues."""
    _, current = await rotated(world)
    world.vault.sealed = True

    await world.failure(world.remove(world.time, empty=True))
    alive = current in world.openrouter.keys
    world.vault.sealed = False
    await world.remove(world.time, empty=True)

    assert alive
    assert world.openrouter.keys == {}


@pytest.mark.parametrize("empty", [False, True])
async def test_a_plan_says_what_a_removal_does_with_keys_and_destinations(world: FakeWorld, empty: bool) -> None:
    """The plan lists the steps in their order, before anything is changed."""
    former, current = (world.key(each).label for each in await rotated(world))

    steps = plan_removal(world.ledger, "checkout", world.time, empty=empty)

    at = show_time(world.time)
    emptied = f"Empty vault-secret/checkout: write `{NOT_YET_ROTATED}` in place of the key."
    left = "Leave that key, which then no longer works, in vault-secret/checkout."
    assert steps == [
        "Delete the deployment rotate/checkout with its schedule.",
        *[emptied] * empty,
        f"Delete the key {current} at OpenRouter at {at}.",
        *[left] * (not empty),
        f"Delete the superseded key {former} at {at}.",
    ]


def test_a_kept_key_is_not_taken_from_its_readers() -> None:
    """Whoever keeps the key wants its readers to keep it, too, so the destination is not emptied."""
    with pytest.raises(
        ConfigurationError, match=r"^destinations: they can be emptied only if keys is revoke.* Nothing was changed\.$"
    ):
        check_removal("checkout", "checkout", "keep", None, "empty")


@pytest.mark.parametrize(
    ("confirm", "keys", "until", "field"),
    [
        ("", "revoke", None, "confirm_name"),
        ("Checkout", "revoke", None, "confirm_name"),
        ("checkout", "burn", None, "keys"),
        ("checkout", "keep-until", None, "keep_until"),
        ("checkout", "keep-until", "2027-01-01T00:00:00", "keep_until"),
        ("checkout", "keep-until", "0001-01-01T00:00:00+14:00", "keep_until"),
        ("checkout", "keep-until", "9999-12-31T23:59:59-14:00", "keep_until"),
        ("checkout", "revoke", "2027-01-01T00:00:00Z", "keep_until"),
    ],
)
def test_a_removal_that_is_not_meant_so_is_refused(confirm: str, keys: str, until: str | None, field: str) -> None:
    """The name must be typed as confirmation, and only keep-until takes a date."""
    with pytest.raises(ConfigurationError, match=rf"^{field}: .* Nothing was changed\.$"):
        check_removal("checkout", confirm, keys, until)


def test_a_date_is_read_with_its_zone() -> None:
    """The text that a deployment stores is read as the same time in UTC."""
    assert parse_keep_until("2027-01-01T01:00:00+01:00") == datetime.fromisoformat("2027-01-01T00:00:00+00:00")


async def added_again(world: FakeWorld) -> str:
    """Add the rotation again after its removal, and rotate; return the hash of its key."""
    world.later(hours=1)
    world.is_deployed = True
    await world.rotate()
    world.later(hours=1)
    return (await world.held()).hash


async def test_a_retry_of_a_removal_that_completed_takes_nothing_away(world: FakeWorld) -> None:
    """Given that the rotation was added again since, its deployment and the key that consumers read stay."""
    await world.rotate()
    run_id, first_started = uuid4(), world.time
    await world.remove(world.time, run_id=run_id)
    current = await added_again(world)

    said = await world.remove(world.time, run_id=run_id, first_started=first_started, attempt=2, completed=True)

    assert said == (
        "Nothing to do: this run has completed before. The rotation checkout was added again; to remove it, start a "
        "new run."
    )
    assert (world.is_deployed, current in world.openrouter.keys) == (True, True)


async def test_a_retry_of_a_removal_that_failed_takes_nothing_away_once_the_rotation_is_back(world: FakeWorld) -> None:
    """Given that it has rotated since the removal began, the Retry asks for a new run of the removal."""
    await world.rotate()
    run_id, first_started = uuid4(), world.time
    world.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await world.failure(world.remove(world.time, run_id=run_id))
    world.app.state.faults.clear()
    current = await added_again(world)

    said = await world.failure(world.remove(world.time, run_id=run_id, first_started=first_started, attempt=2))

    assert "has rotated since this removal was first started, so it may have been added again" in said
    assert (world.is_deployed, current in world.openrouter.keys) == (True, True)


async def test_a_rotation_that_was_added_again_keeps_the_key_that_its_destination_holds(world: FakeWorld) -> None:
    """Given a removal with a date, after which the added rotation could not rotate, the key outlives the date."""
    await world.rotate()
    former = await world.held()
    await world.remove(world.time + timedelta(days=1))
    world.is_deployed = True
    world.later(days=1)

    said = await world.failure(world.retire())
    kept = world.openrouter.is_live(former.secret)
    await world.rotate()

    assert "was not revoked, because it is still held by vault-secret/checkout." in said
    assert (kept, former.hash in world.openrouter.keys) == (True, False)


async def test_a_removal_empties_where_an_unfinished_rotation_has_published(world: FakeWorld) -> None:
    """Given a first key that reached one of two destinations, that one is emptied, so nobody reads a dead key."""
    unwritable = world.block.model_copy(update={"path": "apps/unwritable"})
    places = {"vault-secret/checkout": world.block, "vault-secret/unwritable": unwritable}

    async def destination(name: str) -> Destination:
        return places[name]

    with mock.patch.object(world, "destination", destination):
        world.change(destinations=list(places))
        world.vault_app.state.faults.add(Fault("before", "POST", "apps/unwritable", status=403))
        await world.failure(world.rotate())
        held = await world.held()
        world.vault_app.state.faults.clear()

        said = await world.remove(world.time, empty=True)

    assert held.hash in world.openrouter.deleted
    assert world.in_vault() == NOT_YET_ROTATED
    assert "No key of the rotation is left in vault-secret/checkout, vault-secret/unwritable." in said
