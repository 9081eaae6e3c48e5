"""An audit reports dead keys in the account's lists, and current keys that are missing from them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from blocks.openrouter.lists import ListKind
from tasks.audit.findings import Finding, Kind
from tests.tasks.conftest import FakeWorld
from tests.tasks.listed import KINDS, other_key, restrict, with_first_key

ABOUT_LISTS = {Kind.DEAD_KEY_LISTED, Kind.SUCCESSOR_NOT_LISTED, Kind.NOT_SEEN, Kind.LOGS_CHOSEN_KEYS}


async def about_lists(world: FakeWorld) -> list[Finding]:
    """Return an audit's findings about lists."""
    return [finding for finding in (await world.audit()).findings if finding.kind in ABOUT_LISTS]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_without_fault_is_no_finding(world: FakeWorld, kind: ListKind) -> None:
    """The list names both keys during the overlap, and the current one after it."""
    former = await with_first_key(world)
    restrict(world, kind, former.hash, other_key(world))

    await world.rotate()
    during = await about_lists(world)
    world.later(hours=24)
    await world.retire()

    assert [during, await about_lists(world)] == [[], []]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_key_in_a_list_is_found(world: FakeWorld, kind: ListKind) -> None:
    """Given a key that was deleted by hand, the finding names the list and the first digits of the hash."""
    former, dead = await with_first_key(world), other_key(world)
    restrict(world, kind, former.hash, dead)
    world.openrouter.delete_key(world.openrouter.keys[dead])

    (finding,) = await about_lists(world)

    assert finding.kind is Kind.DEAD_KEY_LISTED
    assert finding.key_hash == dead
    assert f"{kind} production names the key {dead[:12]}, which does not exist" in finding.sentence


async def test_a_disabled_key_in_a_list_is_found(world: FakeWorld) -> None:
    """OpenRouter refuses changes to a list with a disabled key, too."""
    former, theirs = await with_first_key(world), other_key(world)
    restrict(world, ListKind.BYOK, former.hash, theirs)
    world.openrouter.keys[theirs].disabled = True

    assert [finding.key_hash for finding in await about_lists(world)] == [theirs]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_current_key_that_is_missing_where_its_predecessor_is_is_found(
    world: FakeWorld, kind: ListKind
) -> None:
    """Given a list from which a person removed the current key, the audit reports it."""
    former = await with_first_key(world)
    which = restrict(world, kind, former.hash)
    await world.rotate()
    which[kind.field] = [former.hash]

    (finding,) = await about_lists(world)

    assert finding.kind is Kind.SUCCESSOR_NOT_LISTED
    assert finding.key_hash == (await world.held()).hash


async def test_without_inherit_a_missing_successor_is_no_finding(world: FakeWorld) -> None:
    """Without inherit, a new key is not meant to join the lists of its predecessor."""
    await world.rotate()
    restrict(world, ListKind.BYOK, (await world.held()).hash)

    await world.rotate()

    assert await about_lists(world) == []


async def test_an_orphan_that_a_list_names_is_superseded(world: FakeWorld) -> None:
    """Deleting the orphan would leave a dead key in the list; a superseded key leaves the list before it is deleted."""
    await world.rotate()
    run = next(iter(world.runs))
    account = world.openrouter.accounts[0]
    orphan = world.openrouter.add_key(account, {"name": f"[rotation checkout run {run}] checkout"})
    which = restrict(world, ListKind.BYOK, orphan.hash, other_key(world))
    world.later(hours=2)

    await world.audit(repair=True)
    superseded = [key.hash for key in world.ledger.superseded]
    world.later(hours=24)
    await world.retire()

    assert superseded == [orphan.hash]
    assert orphan.hash not in {*world.openrouter.keys, *which["allowed_api_key_hashes"]}


async def test_what_the_account_lacks_is_a_notice(world: FakeWorld) -> None:
    """The audit continues without the parts that the account lacks, and no person must act."""
    await world.rotate()
    world.openrouter.lacks = {"byok": 404, "observability": 403}

    found = await about_lists(world)

    assert [finding.kind for finding in found] == [Kind.NOT_SEEN, Kind.NOT_SEEN]
    assert not any(finding.needs_person for finding in found)


async def test_an_account_without_workspaces_is_audited(world: FakeWorld) -> None:
    """The account's other keys name its workspace, so a missing key counts as deleted, and not as another account's."""
    world.change(overlap=timedelta(hours=24))
    await world.rotate()
    await world.rotate()
    world.openrouter.lacks = {"workspaces": 404}
    world.openrouter.delete_key(world.key(world.superseded.hash))

    kinds = {finding.kind for finding in (await world.audit()).findings}

    assert kinds == {Kind.NOT_SEEN, Kind.SUPERSEDED_KEY_DIFFERS}


async def test_logging_that_was_restricted_later_is_a_notice(world: FakeWorld) -> None:
    """It names keys by ids that no API resolves, and no rotation asks for it again, so the audit finds it."""
    await world.rotate()
    settings = {"is_observability_io_logging_enabled": True, "io_logging_api_key_ids": [7]}
    world.openrouter.workspace_settings[world.openrouter.accounts[0].workspaces[0]] = settings

    assert [finding.kind for finding in await about_lists(world)] == [Kind.LOGS_CHOSEN_KEYS]
