"""Settings that must survive every rotation, verified with OpenRouter's own client."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest

from blocks.errors import LedgerError
from sandbox.server import Fault
from tests.tasks.conftest import FakeWorld


def guardrail(world: FakeWorld) -> str:
    """Create a guardrail in the account, and return its id."""
    with world.sdk() as sdk:
        return str(sdk.guardrails.create(name=f"guardrail {uuid4()}").data.id)


async def guardrail_of(world: FakeWorld) -> str | None:
    """Return the guardrail of the key that the destination holds, as OpenRouter's own client shows it."""
    wanted = (await world.held()).hash
    with world.sdk() as sdk:
        page = sdk.guardrails.list_key_assignments()
        while page is not None:
            for assignment in page.result.data:
                if assignment.key_hash == wanted:
                    return str(assignment.guardrail_id)
            page = page.next()
    return None


async def test_every_new_key_gets_what_the_rotation_names(world: FakeWorld) -> None:
    """Workspace, guardrail, limit, reset, BYOK inclusion and creator are those of the rotation, every time."""
    workspace = world.other_workspace()
    rail = guardrail(world)
    named = {
        "workspace_id": workspace,
        "guardrail_id": rail,
        "creator_user_id": "user_1",
        "include_byok_in_limit": True,
    }
    world.change(key=named)

    for _ in range(2):
        await world.rotate()

        with world.sdk() as sdk:
            shown = sdk.api_keys.get(hash=(await world.held()).hash).data
        assert (shown.limit, shown.limit_reset, shown.include_byok_in_limit) == (50, "monthly", True)
        assert (shown.workspace_id, shown.creator_user_id) == (workspace, "user_1")
        assert await guardrail_of(world) == rail


async def test_no_unguarded_key_ever_reaches_a_consumer(world: FakeWorld) -> None:
    """If the guardrail cannot be assigned, the key is not published, and the next run deletes it."""
    await world.rotate()
    before = (await world.held()).hash
    world.change(key={"guardrail_id": guardrail(world)})
    world.app.state.faults.add(Fault("before", "POST", "/assignments/keys", status=403))
    await world.failure(world.rotate())
    meanwhile = (await world.held()).hash
    world.app.state.faults.clear()

    await world.rotate()

    assert meanwhile == before
    assert await guardrail_of(world) is not None
    assert len(world.openrouter.live_keys()) == 2


async def test_a_guardrail_that_does_not_exist_is_named(world: FakeWorld) -> None:
    """The sentence names the field, so that a person can correct it."""
    world.change(key={"guardrail_id": str(uuid4())})

    sentence = await world.failure(world.rotate())

    assert sentence.startswith("rotation.key.guardrail_id: ")


async def test_inherit_takes_from_the_current_key_what_the_rotation_leaves_open(world: FakeWorld) -> None:
    """The next key gets the settings of the current one at OpenRouter, whether a rotation or a person made them."""
    workspace = world.other_workspace()
    world.change(key={"workspace_id": workspace, "creator_user_id": "user_1"})
    await world.rotate()
    rail, held = guardrail(world), await world.held()
    with world.sdk() as sdk:
        sdk.api_keys.update(hash=held.hash, limit=12.5, limit_reset="weekly", include_byok_in_limit=True)
        sdk.guardrails.bulk_assign_keys(id=rail, key_hashes=[held.hash])
    left_open = {"workspace_id": None, "creator_user_id": None, "limit_usd": None, "limit_reset": "none"}
    world.change(key={"inherit": True, **left_open})

    await world.rotate()

    with world.sdk() as sdk:
        shown = sdk.api_keys.get(hash=(await world.held()).hash).data
    assert (await world.held()).hash != held.hash
    assert (shown.limit, shown.limit_reset, shown.include_byok_in_limit) == (12.5, "weekly", True)
    assert (shown.workspace_id, shown.creator_user_id) == (workspace, "user_1")
    assert await guardrail_of(world) == rail


async def test_what_the_rotation_names_wins_over_what_it_inherits(world: FakeWorld) -> None:
    """A limit in the rotation replaces the key's limit together with its reset."""
    world.change(key={"inherit": True})
    await world.rotate()
    world.change(key={"limit_usd": 20, "limit_reset": "none"})

    await world.rotate()

    assert ((await world.held()).limit, (await world.held()).limit_reset) == (Decimal(20), None)


async def test_inherited_settings_outlive_a_key_that_was_deleted_by_hand(world: FakeWorld) -> None:
    """The ledger records the settings of the key."""
    world.change(key={"inherit": True, "include_byok_in_limit": True})
    await world.rotate()
    world.change(key={"include_byok_in_limit": False, "limit_usd": None, "limit_reset": "none"})
    world.openrouter.delete_key(await world.held())

    await world.rotate()

    held = await world.held()
    assert (held.limit, held.limit_reset, held.include_byok_in_limit) == (Decimal(50), "monthly", True)


async def test_changed_settings_reach_openrouter_with_the_next_rotation(world: FakeWorld) -> None:
    """Without inherit, only the rotation's settings apply."""
    await world.rotate()
    world.change(key={"limit_usd": 75})

    await world.rotate()

    assert (await world.held()).limit == 75


async def test_apply_settings_changes_the_current_key_and_makes_none(world: FakeWorld) -> None:
    """Limit, reset, BYOK inclusion and guardrail change on the key that consumers already have."""
    await world.rotate()
    held, rail = (await world.held()).hash, guardrail(world)
    world.change(key={"limit_usd": 75, "limit_reset": "daily", "include_byok_in_limit": True, "guardrail_id": rail})

    message = await world.apply()

    with world.sdk() as sdk:
        shown = sdk.api_keys.get(hash=held).data
    assert (shown.limit, shown.limit_reset, shown.include_byok_in_limit) == (75, "daily", True)
    assert await guardrail_of(world) == rail
    assert len(world.openrouter.created) == 1
    assert message.endswith(": changed guardrail_id, include_byok_in_limit, limit, limit_reset.")


async def test_apply_settings_takes_a_guardrail_away(world: FakeWorld) -> None:
    """A rotation that neither names nor inherits a guardrail gets a key without one."""
    world.change(key={"guardrail_id": guardrail(world)})
    await world.rotate()
    world.change(key={"guardrail_id": None})

    await world.apply()

    assert await guardrail_of(world) is None


async def test_apply_settings_says_what_only_a_new_key_can_have(world: FakeWorld) -> None:
    """OpenRouter cannot change the creator of an existing key, so the message says that it takes a rotation."""
    await world.rotate()
    world.change(key={"creator_user_id": "user_2"})

    await world.apply()

    assert world.notes == ["The creator of an existing key cannot be changed: the next rotation sets the new one."]


async def test_apply_settings_lets_a_new_retirement_policy_count_at_once(world: FakeWorld) -> None:
    """Superseded keys end as the new policy says: here the key is disabled first, and deleted later."""
    await world.rotate()
    await world.rotate()
    world.change(retirement={"revoke": "disable-then-delete"})

    await world.apply()

    world.later(hours=24)
    await world.retire()
    assert world.superseded.disabled


async def test_an_empty_change_is_never_sent(world: FakeWorld) -> None:
    """OpenRouter answers an empty PATCH with 400, so nothing is sent without a difference."""
    await world.rotate()
    world.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=400))

    assert (await world.apply()).endswith(": nothing to change at OpenRouter.")


@pytest.mark.parametrize("days", [45, 60])
async def test_a_key_gets_its_own_end(world: FakeWorld, days: int) -> None:
    """With expires_after a key expires by itself, even if rotations stop."""
    world.interval = timedelta(days=30)
    world.change(key={"expires_after": timedelta(days=days)})
    await world.rotate()
    held = await world.held()

    world.later(days=days)

    assert world.use(held) == 401
    assert held.expires_at == world.time


@pytest.mark.parametrize(("minimum_age", "least"), [(0, "32 days"), (8, "40 days")])
async def test_an_end_before_the_next_rotation_is_refused(world: FakeWorld, minimum_age: int, least: str) -> None:
    """A key must outlive minimum age, interval, overlap and a margin; the sentence names field and minimum."""
    world.interval = timedelta(days=30)
    world.change(key={"expires_after": timedelta(days=31)}, minimum_age=timedelta(days=minimum_age))

    sentence = await world.failure(world.rotate())

    assert sentence.startswith("rotation.key.expires_after must not be shorter than interval, minimum age, overlap and")
    assert least in sentence
    assert world.openrouter.created == []


async def test_settings_are_inherited_though_the_ledger_was_lost(world: FakeWorld) -> None:
    """The key that the destination holds is recovered, and the next one gets its limit and its guardrail."""
    rail = guardrail(world)
    world.change(key={"limit_usd": 20, "limit_reset": "none", "guardrail_id": rail})
    await world.rotate()
    world.store.value = None
    world.change(key={"limit_usd": None, "guardrail_id": None, "inherit": True})

    await world.rotate()

    assert (await world.held()).limit == 20
    assert await guardrail_of(world) == rail


async def test_nothing_is_inherited_from_a_key_that_nobody_holds(world: FakeWorld) -> None:
    """The run fails and says what to do, instead of creating a key without a limit."""
    world.change(key={"limit_usd": None, "limit_reset": "none", "inherit": True})
    await world.rotate()
    world.store.value = None
    await world.block.awrite_secret(b"sk-or-v1-by-hand")

    sentence = await world.failure(world.rotate())

    assert sentence.startswith("rotation.key.inherit: the ledger was lost")


async def test_an_adopted_key_that_was_deleted_by_hand_still_gives_its_limit(world: FakeWorld) -> None:
    """The ledger records the settings of the adopted key."""
    former = world.openrouter.add_key(world.openrouter.accounts[0], {"name": "by hand", "limit": 20})
    world.change(adopt=former.hash, key={"limit_usd": None, "limit_reset": "none", "inherit": True})
    world.app.state.faults.add(Fault("before", "POST", "/keys$", status=403, times=1))
    await world.failure(world.rotate())
    world.openrouter.delete_key(former)

    await world.rotate()

    assert (await world.held()).limit == 20


async def test_a_policy_that_the_ledger_has_no_room_for_is_refused(world: FakeWorld) -> None:
    """Tracking the use of many superseded keys takes room in the ledger; a policy that needs too much is refused."""
    world.change(overlap=timedelta(days=365))
    with suppress(LedgerError):
        while True:
            await world.rotate()
    before = world.store.value
    world.change(overlap=timedelta(0), retirement={"retire_when": "unused"})

    sentence = await world.failure(world.apply())

    assert sentence.startswith("rotation.retirement.retire_when: the ledger has no room")
    assert world.store.value == before
