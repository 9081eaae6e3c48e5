"""A rotation is taken away for good."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr

from blocks.errors import ConfigurationError
from flows.remove_rotation import check_removal, end_of_keys, parse_keep_until
from sandbox.server import Fault
from tasks.life.remove import plan_removal
from tasks.model.events import Event
from tasks.model.keys import NOT_YET_ROTATED, read_marker, show_time
from tests.tasks.conftest import Life


async def rotated(life: Life) -> tuple[str, str]:
    """A rotation with a superseded and a current key: their hashes."""
    await life.rotate()
    await life.rotate()
    return life.superseded.hash, (await life.held()).hash


async def test_revoke_kills_every_key_and_forgets_the_ledger(life: Life) -> None:
    """Nothing of the rotation is left, at OpenRouter or in Prefect."""
    await rotated(life)

    await life.remove(life.time)

    assert life.openrouter.keys == {}
    assert life.store.value is None
    assert Event.ROTATION_REMOVED in [event for event, _ in life.events]


async def test_keep_leaves_the_current_key_to_its_user(life: Life) -> None:
    """The current key lives on without a marker, so that nobody takes it for an orphan; older ones end as planned."""
    former, current = await rotated(life)

    await life.remove(None)
    older_alive = former in life.openrouter.keys
    life.later(hours=24)
    await life.retire()

    assert older_alive
    assert list(life.openrouter.keys) == [current]
    assert read_marker(life.key(current).name) is None
    assert life.store.value is None


async def test_keep_until_revokes_the_current_key_on_its_date(life: Life) -> None:
    """Until then it works, though no deployment is left; then the planned run revokes it and forgets the ledger."""
    _, current = await rotated(life)
    until = life.time + timedelta(days=10)

    await life.remove(until)
    planned = until in life.retirements
    life.later(days=9)
    await life.retire()
    alive_before = current in life.openrouter.keys
    life.time = until
    await life.retire()

    assert (planned, alive_before) == (True, True)
    assert life.openrouter.keys == {}
    assert life.store.value is None


async def test_no_key_outlives_the_date(life: Life) -> None:
    """A long overlap is cut short by the removal."""
    life.change(overlap=timedelta(days=300))
    await rotated(life)
    until = life.time + timedelta(days=1)
    await life.remove(until)

    life.time = until
    await life.retire()

    assert life.openrouter.keys == {}


async def test_a_removal_that_failed_midway_is_finished_by_a_retry(life: Life) -> None:
    """The ledger knows what is left to revoke."""
    await rotated(life)
    life.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await life.failure(life.remove(life.time))
    life.app.state.faults.clear()

    await life.remove(life.time)

    assert life.openrouter.keys == {}
    assert life.store.value is None


async def test_an_interrupted_rotation_is_removed_with_its_pending_key(life: Life) -> None:
    """A key that was created and never published dies with the rotation."""
    await life.rotate()
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await life.failure(life.rotate())
    life.app.state.faults.clear()

    await life.remove(life.time)

    assert life.openrouter.keys == {}


async def test_a_key_is_not_kept_while_it_is_not_clear_which_one(life: Life) -> None:
    """Before anything is changed; so the unfinished rotation can still be retried."""
    await life.rotate()
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await life.failure(life.rotate())
    life.app.state.faults.clear()
    before = life.store.value

    sentence = await life.failure(life.remove(None))

    assert "is unfinished, so it is unclear which key to keep" in sentence
    assert sentence.endswith("Nothing was changed.")
    assert (life.store.value, life.is_deployed) == (before, True)


def test_a_date_that_is_past_is_refused(life: Life) -> None:
    """A mistyped year must not end the current key at once."""
    with pytest.raises(ConfigurationError, match=r"^keep_until: must be in the future\. Nothing was changed\.$"):
        end_of_keys(life.open(), life.time - timedelta(days=365), revoke=False)


def test_a_date_too_far_ahead_is_refused(life: Life) -> None:
    """No scheduler keeps a run for thousands of years: who means for ever says keep."""
    with pytest.raises(
        ConfigurationError, match=r"^keep_until: must not be more than 3650 days ahead; .* choose keep\."
    ):
        end_of_keys(life.open(), life.time + timedelta(days=3651), revoke=False)


def test_a_retry_after_the_date_goes_on(life: Life) -> None:
    """The date was ahead when the removal was started."""
    until = life.time + timedelta(days=1)
    run = life.open(first_started=life.time, attempt=2)
    life.later(days=2)

    assert end_of_keys(run, until, revoke=False) == until


async def test_a_kept_key_stays_its_users_when_the_rotation_comes_back(life: Life) -> None:
    """The new rotation makes a key of its own, and ends the older ones, but not the one that was given away."""
    former, kept = await rotated(life)
    await life.remove(None)

    await life.rotate()
    life.later(days=9)
    await life.retire()

    assert former not in life.openrouter.keys
    assert {key.hash for key in life.openrouter.live_keys()} == {kept, (await life.held()).hash}


async def test_nothing_is_brought_back_from_a_removed_rotation(life: Life) -> None:
    """Otherwise the kept key would be superseded."""
    await rotated(life)
    await life.remove(None)

    assert "was removed" in await life.failure(life.restore())


@pytest.mark.parametrize("keep_for", [None, timedelta(0), timedelta(days=30)], ids=["keep", "revoke", "keep-until"])
@pytest.mark.parametrize(
    "policy",
    [{"revoke": "disable-then-delete"}, {"retire_when": "unused", "on_still_used": "keep"}],
    ids=["disable-then-delete", "unused"],
)
async def test_older_keys_end_whatever_the_policy_was(
    life: Life, policy: dict[str, str], keep_for: timedelta | None
) -> None:
    """Nobody is left to bring one back, or to decide about one that is still used."""
    life.change(retirement=policy)
    former, _ = await rotated(life)
    await life.remove(None if keep_for is None else life.time + keep_for)

    life.later(hours=24)
    if former in life.openrouter.keys:
        life.spend(life.key(former), "1")
        await life.retire()

    assert former in life.openrouter.deleted


async def test_a_rotation_of_the_same_name_can_be_added_again(life: Life) -> None:
    """Even while a key of the removed one is still kept."""
    await rotated(life)
    await life.remove(life.time + timedelta(days=10))

    await life.rotate()
    life.later(days=11)
    await life.retire()

    assert [key.hash for key in life.openrouter.live_keys()] == [(await life.held()).hash]


async def test_removing_what_is_not_there_is_no_error(life: Life) -> None:
    """A removal may be repeated."""
    assert "removed" in await life.remove(life.time)


async def test_a_removal_says_which_key_is_deleted_and_where_it_is_still_read(life: Life) -> None:
    """Vault still holds the dead key: whoever reads it there has to move."""
    former, label = (life.key(each).label for each in await rotated(life))

    said = await life.remove(life.time)

    assert f"Deleted at OpenRouter: {former}, {label}." in said
    assert f"may still hold the key {label}, which has ended: move the consumers that read it there." in said


async def test_a_removal_with_a_date_says_what_then_ends_where(life: Life) -> None:
    """Until then there is time to move the consumers."""
    _, current = await rotated(life)
    until = life.time + timedelta(days=10)

    said = await life.remove(until)

    assert f"may still hold the superseded key {life.key(current).label}, which ends at {show_time(until)}" in said


async def test_a_destination_is_emptied_before_its_key_is_deleted(life: Life) -> None:
    """Nobody reads a dead key, and the next rotation of that name may begin there."""
    await rotated(life)

    said = await life.remove(life.time, empty=True)
    held = await life.block.read_content()
    await life.rotate()

    assert held.value == SecretStr(NOT_YET_ROTATED)
    assert "No key of the rotation is left in vault-secret/checkout." in said
    assert "may still hold" not in said
    assert len(life.openrouter.live_keys()) == 1


async def test_what_somebody_else_has_put_into_a_destination_is_not_emptied(life: Life) -> None:
    """Only keys of the rotation are replaced."""
    await rotated(life)
    await life.block.write_content(SecretStr("a password"), await life.block.read_content(), {})

    await life.remove(life.time, empty=True)

    assert (await life.block.read_content()).value == SecretStr("a password")


async def test_no_key_is_deleted_while_a_destination_cannot_be_emptied(life: Life) -> None:
    """The removal fails before that, and a Retry goes on."""
    _, current = await rotated(life)
    life.vault.sealed = True

    await life.failure(life.remove(life.time, empty=True))
    alive = current in life.openrouter.keys
    life.vault.sealed = False
    await life.remove(life.time, empty=True)

    assert alive
    assert life.openrouter.keys == {}


@pytest.mark.parametrize("empty", [False, True])
async def test_a_plan_says_what_a_removal_does_with_keys_and_destinations(life: Life, empty: bool) -> None:
    """Before anything is changed, and in the order in which it is done."""
    former, current = (life.key(each).label for each in await rotated(life))

    steps = plan_removal(life.ledger, "checkout", life.time, empty=empty)

    at = show_time(life.time)
    emptied = f"Empty vault-secret/checkout: write `{NOT_YET_ROTATED}` in place of the key."
    left = "Leave vault-secret/checkout unchanged, so that it still holds that key, which then no longer works."
    assert steps == [
        "Delete the deployment rotate/checkout with its schedule.",
        *[emptied] * empty,
        f"Delete the key {current} at OpenRouter at {at}.",
        *[left] * (not empty),
        f"Delete the superseded key {former} at {at}.",
    ]


def test_a_kept_key_is_not_taken_from_its_readers() -> None:
    """Whoever keeps the key keeps it where it is read."""
    with pytest.raises(ConfigurationError, match=r"^destinations: empty requires keys revoke.* Nothing was changed\.$"):
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
    """The name must be typed, and a date goes with keep-until only."""
    with pytest.raises(ConfigurationError, match=rf"^{field}: .* Nothing was changed\.$"):
        check_removal("checkout", confirm, keys, until)


def test_a_date_is_read_with_its_zone() -> None:
    """What a deployment stores as text is the same moment in UTC."""
    assert parse_keep_until("2027-01-01T01:00:00+01:00") == datetime.fromisoformat("2027-01-01T00:00:00+00:00")
