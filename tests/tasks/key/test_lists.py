"""A successor joins every one of the account's lists that names its predecessor, and a dead key is in none."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import httpx
import pytest

from blocks.openrouter.lists import ListKind
from sandbox.server import Fault
from tests.tasks.conftest import FakeWorld
from tests.tasks.listed import KINDS, other_key, restrict, with_first_key, with_listed_key

FORBIDDEN = json.dumps({"error": {"code": 403, "message": "Only management keys can perform this operation"}})
GONE = json.dumps({"error": {"code": 404, "message": "Resource not found"}})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_successor_takes_the_place_of_its_predecessor(world: FakeWorld, kind: ListKind) -> None:
    """Given a list that names the current key, it names the successor as well, and after the overlap only that."""
    former = await with_first_key(world)
    theirs = other_key(world)
    which = restrict(world, kind, former.hash, theirs)

    await world.rotate()
    current = await world.held()
    during = list(which[kind.field])
    world.later(hours=24)
    await world.retire()

    assert during == [former.hash, theirs, current.hash]
    assert which[kind.field] == [theirs, current.hash]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["delete", "disable-then-delete"])
async def test_the_old_hash_leaves_the_list_before_its_key_dies(world: FakeWorld, kind: ListKind, policy: str) -> None:
    """OpenRouter refuses changes to a list with a dead key, so the list is changed before the key is revoked."""
    former = await with_first_key(world, overlap=timedelta(0), retirement={"revoke": policy})
    which = restrict(world, kind, former.hash)

    await world.rotate()

    assert which[kind.field] == [(await world.held()).hash]
    deaths = [n for n, (method, path) in enumerate(world.app.state.requests) if former.hash in path and method != "GET"]
    requests = list(world.app.state.requests)
    writes = [n for n, (method, path) in enumerate(requests) if method == "PATCH" and which["id"] in path]
    assert max(writes) < min(deaths)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_new_hash_is_in_the_list_before_anybody_can_read_the_key(world: FakeWorld, kind: ListKind) -> None:
    """A consumer that reads the new key can use at once whatever the old key could."""
    former = await with_first_key(world)
    which = restrict(world, kind, former.hash)
    world.app.state.faults.add(Fault("before", "PATCH", which["id"], status=403, body=FORBIDDEN))

    sentence = await world.failure(world.rotate())

    assert (await world.held()).hash == former.hash
    assert "Nothing was published" in sentence
    assert "production" in sentence


REFUSALS = {
    "the list is full": (None, "it names 100 keys already"),
    "the management key may not change it": (Fault("before", "PATCH", "/byok/", status=403, body=FORBIDDEN), "may not"),
    "the credential is gone": (Fault("before", "PATCH", "/byok/", status=404, body=GONE), "does not exist any more"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_key_that_cannot_be_added_is_not_published(world: FakeWorld, case: str) -> None:
    """Whatever keeps the new key out of a list fails the run with one sentence, and the old key stays current."""
    fault, says = REFUSALS[case]
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    if fault is None:
        others = [other_key(world) for _ in range(99)]
        which["allowed_api_key_hashes"] = [former.hash, *others]
    else:
        world.app.state.faults.add(Fault("before", fault.method, fault.path, fault.status, body=fault.body))

    sentence = await world.failure(world.rotate())

    assert says in sentence
    assert (await world.held()).hash == former.hash
    world.app.state.faults.clear()
    which["allowed_api_key_hashes"] = [former.hash]
    await world.rotate()
    assert (await world.held()).hash in which["allowed_api_key_hashes"]
    assert set(which["allowed_api_key_hashes"]) <= set(world.openrouter.keys)


@pytest.mark.parametrize("kind", KINDS)
async def test_without_inherit_nothing_is_carried_and_the_run_says_so(world: FakeWorld, kind: ListKind) -> None:
    """Given inherit off, the new key joins no list, a note names the lists, and the old key still leaves them."""
    _, theirs, which = await with_listed_key(world, kind)

    await world.rotate()
    notes = list(world.notes)
    world.later(hours=24)
    await world.retire()

    assert [note for note in notes if f"{kind} production" in note and "inherit is off" in note]
    assert which[kind.field] == [theirs]


@pytest.mark.parametrize("kind", KINDS)
async def test_switching_inherit_on_within_the_overlap_brings_the_places_back(world: FakeWorld, kind: ListKind) -> None:
    """As the note says: the next key joins the lists that still name the superseded key."""
    former, theirs, which = await with_listed_key(world, kind)
    await world.rotate()

    world.change(key={"inherit": True})
    await world.rotate()

    assert which[kind.field] == [former.hash, theirs, (await world.held()).hash]


async def test_the_last_key_of_a_list_stays_rather_than_open_it_to_every_key(world: FakeWorld) -> None:
    """Given a list with nothing but a key of a removed rotation, it stays as it is, and the run says so."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)

    await world.remove(world.time)

    assert which["allowed_api_key_hashes"] == [former.hash]
    assert former.hash not in world.openrouter.keys
    assert [note for note in world.notes if "could open it to every key" in note]


async def test_a_removal_takes_dead_keys_out(world: FakeWorld) -> None:
    """Given a list that also names other keys, those of the removed rotation leave it."""
    former, theirs = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, theirs)
    await world.rotate()

    await world.remove(world.time)

    assert which["allowed_api_key_hashes"] == [theirs]


async def test_an_emergency_replaces_the_leaked_key_in_lists(world: FakeWorld) -> None:
    """The list names the new key and no longer the leaked one."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)

    await world.rotate(emergency=True)

    assert which["allowed_api_key_hashes"] == [(await world.held()).hash]
    assert former.hash not in world.openrouter.keys


@pytest.mark.parametrize("status", [403, 500])
async def test_no_list_keeps_a_leaked_key_alive(world: FakeWorld, status: int) -> None:
    """Given lists that cannot be changed, an emergency revokes nevertheless, and fails with what remains to do."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    body = json.dumps({"error": {"code": status, "message": "no"}})
    world.app.state.faults.add(Fault("before", "PATCH", which["id"], status=status, body=body))

    sentence = await world.failure(world.rotate(emergency=True))

    assert former.hash not in world.openrouter.keys
    assert (await world.held()).hash != former.hash
    assert "BYOK credential" in sentence


async def test_what_an_emergency_left_in_a_list_is_taken_out_later(world: FakeWorld) -> None:
    """Given a list that could not be changed for a while, the next run removes the dead key from it."""
    former, theirs = await with_first_key(world), other_key(world)
    which = restrict(world, ListKind.BYOK, former.hash, theirs)
    world.app.state.faults.add(Fault("before", "PATCH", which["id"], status=500))
    await world.failure(world.rotate(emergency=True))
    world.app.state.faults.clear()

    await world.retire()

    assert former.hash not in which["allowed_api_key_hashes"]
    assert world.ledger.superseded == ()


async def test_a_restored_key_has_its_places_again(world: FakeWorld) -> None:
    """Given a disabled key that has left its lists, it rejoins them before it is published."""
    world.change(overlap=timedelta(0), retirement={"revoke": "disable-then-delete"})
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    await world.rotate()
    replaced = await world.held()

    await world.restore()

    assert (await world.held()).hash == former.hash
    assert former.hash in which["allowed_api_key_hashes"]
    assert replaced.hash not in which["allowed_api_key_hashes"]


async def test_an_adopted_key_leaves_its_places_to_its_successor(world: FakeWorld) -> None:
    """Given a list with a key that a person created, the first rotation's key joins the list as well."""
    mine = world.openrouter.add_key(world.openrouter.accounts[0], {"name": "by hand"})
    which = restrict(world, ListKind.BYOK, mine.hash)
    world.change(adopt=mine.hash, key={"inherit": True})

    await world.rotate()

    assert which["allowed_api_key_hashes"] == [mine.hash, (await world.held()).hash]


async def test_a_plan_lists_what_an_adopted_key_will_leave_to_its_successor(world: FakeWorld) -> None:
    """The first key inherits the workspace of the adopted one, so the lists of that workspace count."""
    account, workspace = world.openrouter.accounts[0], world.other_workspace()
    mine = world.openrouter.add_key(account, {"name": "by hand", "workspace_id": workspace})
    world.openrouter.add_credential(account, workspace, name="theirs", allowed_api_key_hashes=[mine.hash])
    world.change(adopt=mine.hash, key={"inherit": True})

    _, steps = await world.plan()

    assert "Add it to the BYOK credential theirs, which names the key that it replaces." in steps


async def test_a_list_of_another_workspace_is_left_alone(world: FakeWorld) -> None:
    """A credential of another workspace does not serve keys of this one."""
    former = await with_first_key(world)
    account = world.openrouter.accounts[0]
    which = world.openrouter.add_credential(account, world.other_workspace(), allowed_api_key_hashes=[former.hash])

    await world.rotate()

    assert which["allowed_api_key_hashes"] == [former.hash]


async def test_a_list_that_was_opened_to_every_key_stays_open(world: FakeWorld) -> None:
    """A credential that a person has opened serves every key, so there is no list to join."""
    former = await with_first_key(world)
    which = restrict(world, ListKind.BYOK, former.hash)
    await world.rotate()
    which["allowed_api_key_hashes"] = None
    world.later(hours=24)

    await world.retire()

    assert which["allowed_api_key_hashes"] is None


@pytest.mark.parametrize(("inherit", "price"), [(False, 4), (True, 6)])
@pytest.mark.parametrize("overlap", [timedelta(hours=24), timedelta(0)])
async def test_the_price_does_not_depend_on_the_account(
    world: FakeWorld, overlap: timedelta, inherit: bool, price: int
) -> None:
    """Given no lists, a run costs four calls, two more with inherit, and one for each key that it deletes.

    Each of the reading calls is needed: their answers are not cached, because they may have changed since.
    """
    world.change(overlap=overlap, key={"inherit": inherit})
    await world.rotate()
    world.openrouter.seed_keys(250)
    world.app.state.requests.clear()

    await world.rotate()

    deleted = sum(method == "DELETE" for method, _ in world.app.state.requests)
    assert deleted == (overlap == timedelta(0))
    assert len(world.app.state.requests) == price + deleted


@pytest.mark.parametrize(("inherit", "price"), [(False, 4 + 1), (True, 6 + 2)])
async def test_each_further_page_costs_a_call(world: FakeWorld, inherit: bool, price: int) -> None:
    """Given two pages of BYOK credentials and of guardrail assignments, the second page of each costs one call."""
    world.change(key={"inherit": inherit})
    await world.rotate()
    world.openrouter.seed_keys(150)
    for key in list(world.openrouter.keys.values())[-150:]:
        key.guardrail_id = "theirs"
    for _ in range(150):
        world.openrouter.add_credential(world.openrouter.accounts[0], None)
    world.app.state.requests.clear()

    await world.rotate()

    assert len(world.app.state.requests) == price


async def test_what_was_changed_since_the_last_rotation_is_carried_over_by_the_next(world: FakeWorld) -> None:
    """Given that people limit a key, guard it and add it to lists between two runs, its successor has all of it."""
    world.change(key={"limit_usd": None, "limit_reset": "none"})
    await with_first_key(world)
    await world.rotate()
    former = await world.held()
    guardrail = str(uuid4())
    world.openrouter.guardrails[guardrail] = {"id": guardrail, "workspace_id": former.workspace_id}
    former.limit, former.guardrail_id = Decimal(80), guardrail
    lists = [(kind.field, restrict(world, kind, former.hash)) for kind in KINDS]

    await world.rotate()

    current = await world.held()
    assert (current.limit, current.guardrail_id) == (Decimal(80), guardrail)
    assert all(current.hash in which[field] for field, which in lists)


async def test_a_plan_lists_what_will_be_carried(world: FakeWorld) -> None:
    """The plan names each list between verification and publication, and changes nothing."""
    former = await with_first_key(world)
    restrict(world, ListKind.BYOK, former.hash)
    restrict(world, ListKind.BROADCAST, former.hash)
    world.app.state.requests.clear()

    _, steps = await world.plan()

    assert [step for step in steps if step.startswith("Add it to the")] == [
        "Add it to the BYOK credential production, which names the key that it replaces.",
        "Add it to the broadcast destination production, which names the key that it replaces.",
    ]
    assert {method for method, _ in world.app.state.requests} == {"GET"}


async def test_a_plan_says_what_is_not_carried(world: FakeWorld) -> None:
    """Without inherit, the plan names the lists that the new key will not join."""
    await world.rotate()
    restrict(world, ListKind.BYOK, (await world.held()).hash)

    _, steps = await world.plan()

    assert [step for step in steps if "inherit is off" in step and "BYOK credential production" in step]


async def test_logging_of_chosen_keys_is_told_of(world: FakeWorld) -> None:
    """Such a setting names keys by ids that no API resolves, so the first run and the plan say so, once each."""
    account = world.openrouter.accounts[0]
    settings = {"is_observability_io_logging_enabled": True, "io_logging_api_key_ids": [7]}
    world.openrouter.workspace_settings[account.workspaces[0]] = settings

    await world.rotate()
    first = [note for note in world.notes if "logs chosen keys only" in note]
    world.notes.clear()
    await world.plan()

    assert len(first) == 1
    assert len([note for note in world.notes if "logs chosen keys only" in note]) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [403, 404])
async def test_an_account_without_lists_is_rotated(world: FakeWorld, kind: ListKind, status: int) -> None:
    """Given an account without lists, the run continues and notes it once."""
    world.openrouter.lacks = {kind.path.partition("/")[0]: status}
    await world.rotate()
    world.notes.clear()

    await world.rotate()

    assert len([note for note in world.notes if f"sees no {kind}s" in note]) == 1


def test_the_account_serves_each_kind_of_list(world: FakeWorld) -> None:
    """Without a valid key, 401 means that the account has this kind of list, and 404 that it lacks it."""
    headers = {"Authorization": "Bearer nobody"}
    assert [httpx.get(f"{world.url}/api/v1/{kind.path}", headers=headers).status_code for kind in KINDS] == [401, 401]


async def test_a_name_of_a_list_is_no_markup(world: FakeWorld) -> None:
    """Whoever names a list in the account writes no link into a run's notes."""
    await world.rotate()
    restrict(world, ListKind.BYOK, (await world.held()).hash)["name"] = "[Retry](https://evil.example)"

    await world.rotate()

    [note] = [note for note in world.notes if "evil" in note]
    assert "BYOK credential (Retry)(https: //evil.example)" in note
