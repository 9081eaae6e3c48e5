"""A successor has every place that its predecessor had in the account's lists of keys, and a dead key has none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import pytest

from blocks.openrouter.lists import KeyList, ListKind
from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.key import lists
from tests.tasks.conftest import Life

KINDS = list(ListKind)
FORBIDDEN = json.dumps({"error": {"code": 403, "message": "Only management keys can perform this operation"}})
GONE = json.dumps({"error": {"code": 404, "message": "Resource not found"}})


async def with_first_key(life: Life, **settings: Any) -> StoredKey:
    """A rotation that inherits, after its first run."""
    life.change(key={"inherit": True}, **settings)
    await life.rotate()
    return await life.held()


def restrict(life: Life, kind: ListKind, *hashes: str, **fields: Any) -> dict[str, Any]:
    """Add a credential or a destination that is for some keys only."""
    account = life.openrouter.accounts[0]
    add = life.openrouter.add_credential if kind is ListKind.BYOK else life.openrouter.add_broadcast
    return add(account, account.workspaces[0], name="production", **{kind.field: list(hashes)}, **fields)


def other_key(life: Life) -> str:
    """A key of somebody else, which the list names as well."""
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": "somebody else's"}).hash


def patches(life: Life) -> int:
    """How many lists were written."""
    return sum(method == "PATCH" and "/keys/" not in path for method, path in life.app.state.requests)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_successor_takes_the_place_of_its_predecessor(life: Life, kind: ListKind) -> None:
    """Given a list that names the current key, its successor is in it too, and alone after the overlap."""
    former = await with_first_key(life)
    theirs = other_key(life)
    which = restrict(life, kind, former.hash, theirs)

    await life.rotate()
    current = await life.held()
    during = list(which[kind.field])
    life.later(hours=24)
    await life.retire()

    assert during == [former.hash, theirs, current.hash]
    assert which[kind.field] == [theirs, current.hash]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["delete", "disable-then-delete"])
async def test_the_old_hash_leaves_the_list_before_its_key_dies(life: Life, kind: ListKind, policy: str) -> None:
    """A list that named a dead key could not be written any more, so it is written first."""
    former = await with_first_key(life, overlap=timedelta(0), retirement={"revoke": policy})
    which = restrict(life, kind, former.hash)

    await life.rotate()

    assert which[kind.field] == [(await life.held()).hash]
    deaths = [n for n, (method, path) in enumerate(life.app.state.requests) if former.hash in path and method != "GET"]
    requests = list(life.app.state.requests)
    writes = [n for n, (method, path) in enumerate(requests) if method == "PATCH" and which["id"] in path]
    assert max(writes) < min(deaths)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_new_hash_is_in_the_list_before_anybody_can_read_the_key(life: Life, kind: ListKind) -> None:
    """Whoever reads the new key may use at once what the old one could."""
    former = await with_first_key(life)
    which = restrict(life, kind, former.hash)
    life.app.state.faults.add(Fault("before", "PATCH", which["id"], status=403, body=FORBIDDEN))

    sentence = await life.failure(life.rotate())

    assert (await life.held()).hash == former.hash
    assert "Nothing was published" in sentence
    assert "production" in sentence


REFUSALS = {
    "the list is full": (None, "it names 100 keys already"),
    "the management key may not change it": (Fault("before", "PATCH", "/byok/", status=403, body=FORBIDDEN), "may not"),
    "the credential is gone": (Fault("before", "PATCH", "/byok/", status=404, body=GONE), "does not exist any more"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_key_that_cannot_be_added_is_not_published(life: Life, case: str) -> None:
    """Whatever keeps the new key out of a list fails the run in one sentence, and the old key stays the current one."""
    fault, says = REFUSALS[case]
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    if fault is None:
        others = [other_key(life) for _ in range(99)]
        which["allowed_api_key_hashes"] = [former.hash, *others]
    else:
        life.app.state.faults.add(Fault("before", fault.method, fault.path, fault.status, body=fault.body))

    sentence = await life.failure(life.rotate())

    assert says in sentence
    assert (await life.held()).hash == former.hash
    life.app.state.faults.clear()
    which["allowed_api_key_hashes"] = [former.hash]
    await life.rotate()
    assert (await life.held()).hash in which["allowed_api_key_hashes"]
    assert set(which["allowed_api_key_hashes"]) <= set(life.openrouter.keys)


@pytest.mark.parametrize("kind", KINDS)
async def test_without_inherit_nothing_is_carried_and_the_run_says_so(life: Life, kind: ListKind) -> None:
    """Given inherit off, the new key is in no list, the note names the lists, and the old key still leaves them."""
    await life.rotate()
    former, theirs = await life.held(), other_key(life)
    which = restrict(life, kind, former.hash, theirs)

    await life.rotate()
    notes = list(life.notes)
    life.later(hours=24)
    await life.retire()

    assert [note for note in notes if f"{kind} production" in note and "inherit is off" in note]
    assert which[kind.field] == [theirs]


async def test_the_last_key_of_a_list_stays_rather_than_open_it_to_every_key(life: Life) -> None:
    """Given a list that names only a key whose rotation is removed, it is left as it is, and the run says so."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)

    await life.remove(life.time)

    assert which["allowed_api_key_hashes"] == [former.hash]
    assert former.hash not in life.openrouter.keys
    assert [note for note in life.notes if "was not opened to every key" in note]


async def test_a_removal_takes_dead_keys_out(life: Life) -> None:
    """Given a list that names other keys as well, the removed rotation's keys leave it."""
    former, theirs = await with_first_key(life), other_key(life)
    which = restrict(life, ListKind.BYOK, former.hash, theirs)
    await life.rotate()

    await life.remove(life.time)

    assert which["allowed_api_key_hashes"] == [theirs]


async def test_an_emergency_replaces_the_leaked_key_in_lists(life: Life) -> None:
    """The new key is in the list, and the leaked one is not."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)

    await life.rotate(emergency=True)

    assert which["allowed_api_key_hashes"] == [(await life.held()).hash]
    assert former.hash not in life.openrouter.keys


@pytest.mark.parametrize("status", [403, 500])
async def test_no_list_keeps_a_leaked_key_alive(life: Life, status: int) -> None:
    """Given lists that cannot be changed, an emergency revokes all the same, and fails with what was left undone."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    body = json.dumps({"error": {"code": status, "message": "no"}})
    life.app.state.faults.add(Fault("before", "PATCH", which["id"], status=status, body=body))

    sentence = await life.failure(life.rotate(emergency=True))

    assert former.hash not in life.openrouter.keys
    assert (await life.held()).hash != former.hash
    assert "BYOK credential" in sentence


async def test_what_an_emergency_left_in_a_list_is_taken_out_later(life: Life) -> None:
    """Given a list that could not be changed for a while, the next run takes the dead key out."""
    former, theirs = await with_first_key(life), other_key(life)
    which = restrict(life, ListKind.BYOK, former.hash, theirs)
    life.app.state.faults.add(Fault("before", "PATCH", which["id"], status=500))
    await life.failure(life.rotate(emergency=True))
    life.app.state.faults.clear()

    await life.retire()

    assert former.hash not in which["allowed_api_key_hashes"]
    assert life.ledger.superseded == ()


async def test_a_restored_key_has_its_places_again(life: Life) -> None:
    """Given a key that was disabled and taken out, restoring it puts it back before it is published."""
    life.change(overlap=timedelta(0), retirement={"revoke": "disable-then-delete"})
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    await life.rotate()
    replaced = await life.held()

    await life.restore()

    assert (await life.held()).hash == former.hash
    assert former.hash in which["allowed_api_key_hashes"]
    assert replaced.hash not in which["allowed_api_key_hashes"]


async def test_an_adopted_key_leaves_its_places_to_its_successor(life: Life) -> None:
    """Given a key that somebody made by hand and named in a list, the first rotation's key is in it as well."""
    mine = life.openrouter.add_key(life.openrouter.accounts[0], {"name": "by hand"})
    which = restrict(life, ListKind.BYOK, mine.hash)
    life.change(adopt=mine.hash, key={"inherit": True})

    await life.rotate()

    assert which["allowed_api_key_hashes"] == [mine.hash, (await life.held()).hash]


async def test_a_dead_key_of_somebody_else_does_not_keep_a_list_as_it_is(life: Life) -> None:
    """OpenRouter refuses a list that names a deleted key; it is taken out with the same write, and the run says so."""
    former, dead = await with_first_key(life), other_key(life)
    which = restrict(life, ListKind.BYOK, former.hash, dead)
    life.openrouter.delete_key(life.openrouter.keys[dead])

    await life.rotate()

    assert which["allowed_api_key_hashes"] == [former.hash, (await life.held()).hash]
    assert [note for note in life.notes if "named a key that is dead" in note]


async def test_a_disabled_key_of_somebody_else_stays_and_is_told_of(life: Life) -> None:
    """It may be enabled again, so that only a person can take it out."""
    former, theirs = await with_first_key(life), other_key(life)
    which = restrict(life, ListKind.BYOK, former.hash, theirs)
    life.openrouter.keys[theirs].disabled = True

    sentence = await life.failure(life.rotate())

    assert which["allowed_api_key_hashes"] == [former.hash, theirs]
    assert "may be disabled" in sentence


async def test_an_update_that_is_lost_is_made_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given somebody who writes the list back as it was before, right after, the new key is in it all the same."""
    former, theirs = await with_first_key(life), other_key(life)
    which = restrict(life, ListKind.BYOK, former.hash, theirs)
    replace = life.client.replace_keys
    written: list[int] = []

    async def undone_once(one: KeyList, hashes: Any) -> None:
        before = list(which["allowed_api_key_hashes"])
        await replace(one, hashes)
        written.append(len(hashes))
        if len(written) == 1:
            which["allowed_api_key_hashes"] = [*before, other_key(life)]

    monkeypatch.setattr(life.client, "replace_keys", undone_once)

    await life.rotate()

    assert written == [3, 4]
    assert (await life.held()).hash in which["allowed_api_key_hashes"]


async def test_a_list_that_others_change_all_the_time_is_given_up(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of writes is bounded, and nothing is published."""
    former, theirs = await with_first_key(life), other_key(life)
    which = restrict(life, ListKind.BYOK, former.hash, theirs)
    replace = life.client.replace_keys

    async def undone(one: KeyList, hashes: Any) -> None:
        await replace(one, hashes)
        which["allowed_api_key_hashes"] = [former.hash, theirs]

    monkeypatch.setattr(life.client, "replace_keys", undone)

    sentence = await life.failure(life.rotate())

    assert "was changed by others" in sentence
    assert (await life.held()).hash == former.hash


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("status", [500, None])
async def test_a_write_without_an_answer_is_settled_by_reading(life: Life, when: Any, status: int | None) -> None:
    """Whether or not it took effect, the list has the new key once, and the run goes on."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    life.app.state.faults.add(Fault(when, "PATCH", which["id"], status=status, times=1))

    await life.rotate()

    assert which["allowed_api_key_hashes"] == [former.hash, (await life.held()).hash]


async def test_a_place_that_was_lost_in_a_race_is_found_again(life: Life) -> None:
    """Given a list from which somebody's late write took the current key, the next run puts its successor there."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    await life.rotate()
    which["allowed_api_key_hashes"] = [former.hash]

    await life.rotate()

    assert (await life.held()).hash in which["allowed_api_key_hashes"]


async def test_a_retirement_puts_the_current_key_in_the_place_of_the_old_one(life: Life) -> None:
    """Given a list whose only key is due, and that has lost the current one, the two change places in one write."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    await life.rotate()
    which["allowed_api_key_hashes"] = [former.hash]
    life.later(hours=24)

    await life.retire()

    assert which["allowed_api_key_hashes"] == [(await life.held()).hash]


async def test_a_list_of_another_workspace_is_left_alone(life: Life) -> None:
    """A credential of another workspace serves no key of this one."""
    former = await with_first_key(life)
    account = life.openrouter.accounts[0]
    which = life.openrouter.add_credential(account, life.other_workspace(), allowed_api_key_hashes=[former.hash])

    await life.rotate()

    assert which["allowed_api_key_hashes"] == [former.hash]


async def test_a_list_that_was_opened_to_every_key_stays_open(life: Life) -> None:
    """Nothing restricts a credential that a person has opened."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    await life.rotate()
    which["allowed_api_key_hashes"] = None
    life.later(hours=24)

    await life.retire()

    assert which["allowed_api_key_hashes"] is None


@pytest.mark.parametrize(("inherit", "price"), [(False, 4), (True, 6)])
@pytest.mark.parametrize("overlap", [timedelta(hours=24), timedelta(0)])
async def test_the_price_does_not_depend_on_the_account(
    life: Life, overlap: timedelta, inherit: bool, price: int
) -> None:
    """Where nothing is restricted, a run costs four calls, two more to inherit, and one for each key that it deletes.

    Each of those that read is needed: what they answer is not remembered, because it may have changed since.
    """
    life.change(overlap=overlap, key={"inherit": inherit})
    await life.rotate()
    life.openrouter.seed_keys(250)
    life.app.state.requests.clear()

    await life.rotate()

    deleted = sum(method == "DELETE" for method, _ in life.app.state.requests)
    assert deleted == (overlap == timedelta(0))
    assert len(life.app.state.requests) == price + deleted


async def test_what_was_changed_since_the_last_rotation_is_carried_over_by_the_next(life: Life) -> None:
    """Given people who limit a key, guard it and name it in lists between two runs, its successor has all of it."""
    life.change(key={"limit_usd": None, "limit_reset": "none"})
    await with_first_key(life)
    await life.rotate()
    former = await life.held()
    guardrail = str(uuid4())
    life.openrouter.guardrails[guardrail] = {"id": guardrail, "workspace_id": former.workspace_id}
    former.limit, former.guardrail_id = Decimal(80), guardrail
    lists = [(kind.field, restrict(life, kind, former.hash)) for kind in KINDS]

    await life.rotate()

    current = await life.held()
    assert (current.limit, current.guardrail_id) == (Decimal(80), guardrail)
    assert all(current.hash in which[field] for field, which in lists)


async def test_a_plan_lists_what_will_be_carried(life: Life) -> None:
    """It names each list between the verification and the first destination, and changes nothing."""
    former = await with_first_key(life)
    restrict(life, ListKind.BYOK, former.hash)
    restrict(life, ListKind.BROADCAST, former.hash)
    life.app.state.requests.clear()

    _, steps = await life.plan()

    assert [step for step in steps if step.startswith("Add it to the")] == [
        "Add it to the BYOK credential production, which names the key that it replaces.",
        "Add it to the broadcast destination production, which names the key that it replaces.",
    ]
    assert {method for method, _ in life.app.state.requests} == {"GET"}


async def test_a_plan_says_what_is_not_carried(life: Life) -> None:
    """Without inherit it names the lists in which the new key will not be."""
    await life.rotate()
    restrict(life, ListKind.BYOK, (await life.held()).hash)

    _, steps = await life.plan()

    assert [step for step in steps if "inherit is off" in step and "BYOK credential production" in step]


async def test_logging_of_chosen_keys_is_told_of(life: Life) -> None:
    """Its ids cannot be looked up: the first run and the plan say so, once each."""
    account = life.openrouter.accounts[0]
    settings = {"is_observability_io_logging_enabled": True, "io_logging_api_key_ids": [7]}
    life.openrouter.workspace_settings[account.workspaces[0]] = settings

    await life.rotate()
    first = [note for note in life.notes if "logs chosen keys only" in note]
    life.notes.clear()
    await life.plan()

    assert len(first) == 1
    assert len([note for note in life.notes if "logs chosen keys only" in note]) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [403, 404])
async def test_an_account_without_lists_is_rotated(life: Life, kind: ListKind, status: int) -> None:
    """Given an account that lacks them, the run goes on and says so once."""
    life.openrouter.lacks = {kind.path.partition("/")[0]: status}
    await life.rotate()
    life.notes.clear()

    await life.rotate()

    assert len([note for note in life.notes if f"sees no {kind}s" in note]) == 1


async def test_a_run_that_lost_its_place_writes_no_list(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the ledger comes before each list is read and written."""
    former = await with_first_key(life)
    which = restrict(life, ListKind.BYOK, former.hash)
    read = life.client.key_lists

    def overtaken(kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        async def lists() -> AsyncIterator[KeyList]:
            other = life.open()
            await other.write(await other.load())
            async for one in read(kind, workspace_id):
                yield one

        return lists()

    monkeypatch.setattr(life.client, "key_lists", overtaken)

    await life.failure(life.rotate())

    assert which["allowed_api_key_hashes"] == [former.hash]


def test_waiting_for_others_is_bounded() -> None:
    """All writes of a list together take less than a slot's lease."""
    assert lists.WRITES * 2 * lists.SETTLE_SECONDS < 60


def test_the_stand_in_is_asked_as_documented(life: Life) -> None:
    """The paths that are counted above are those of the lists."""
    headers = {"Authorization": "Bearer nobody"}
    assert [httpx.get(f"{life.url}/api/v1/{kind.path}", headers=headers).status_code for kind in KINDS] == [401, 401]
