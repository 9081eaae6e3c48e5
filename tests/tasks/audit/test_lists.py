"""An audit finds dead keys in the account's lists, and current keys that are missing from them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from blocks.openrouter.lists import ListKind
from tasks.audit.findings import Finding, Kind
from tests.tasks.conftest import Life
from tests.tasks.key.test_lists import other_key, restrict, with_first_key

KINDS = list(ListKind)
ABOUT_LISTS = {Kind.DEAD_KEY_LISTED, Kind.SUCCESSOR_NOT_LISTED, Kind.NOT_SEEN, Kind.LOGS_CHOSEN_KEYS}


async def about_lists(life: Life) -> list[Finding]:
    """What an audit finds about lists."""
    return [finding for finding in (await life.audit()).findings if finding.kind in ABOUT_LISTS]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_without_fault_is_no_finding(life: Life, kind: ListKind) -> None:
    """During the overlap both keys are in it, and after it one."""
    former = await with_first_key(life)
    restrict(life, kind, former.hash, other_key(life))

    await life.rotate()
    during = await about_lists(life)
    life.later(hours=24)
    await life.retire()

    assert [during, await about_lists(life)] == [[], []]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_key_in_a_list_is_found(life: Life, kind: ListKind) -> None:
    """Given a key that was deleted by hand, the finding names the list and the beginning of the hash."""
    former, dead = await with_first_key(life), other_key(life)
    restrict(life, kind, former.hash, dead)
    life.openrouter.delete_key(life.openrouter.keys[dead])

    (finding,) = await about_lists(life)

    assert finding.kind is Kind.DEAD_KEY_LISTED
    assert finding.key_hash == dead
    assert f"{kind} production names the key {dead[:12]}, which does not exist" in finding.sentence


async def test_a_disabled_key_in_a_list_is_found(life: Life) -> None:
    """It keeps the list from being changed just as well."""
    former, theirs = await with_first_key(life), other_key(life)
    restrict(life, ListKind.BYOK, former.hash, theirs)
    life.openrouter.keys[theirs].disabled = True

    assert [finding.key_hash for finding in await about_lists(life)] == [theirs]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_current_key_that_is_missing_where_its_predecessor_is_is_found(life: Life, kind: ListKind) -> None:
    """Given a list from which somebody took the current key, the audit says so."""
    former = await with_first_key(life)
    which = restrict(life, kind, former.hash)
    await life.rotate()
    which[kind.field] = [former.hash]

    (finding,) = await about_lists(life)

    assert finding.kind is Kind.SUCCESSOR_NOT_LISTED
    assert finding.key_hash == (await life.held()).hash


async def test_without_inherit_a_missing_successor_is_no_finding(life: Life) -> None:
    """Nothing was to be carried over."""
    await life.rotate()
    restrict(life, ListKind.BYOK, (await life.held()).hash)

    await life.rotate()

    assert await about_lists(life) == []


async def test_an_orphan_that_a_list_names_is_superseded(life: Life) -> None:
    """Deleting it would leave a dead key in the list; the end of its overlap takes it out."""
    await life.rotate()
    run = next(iter(life.runs))
    account = life.openrouter.accounts[0]
    orphan = life.openrouter.add_key(account, {"name": f"[rotation checkout run {run}] checkout"})
    which = restrict(life, ListKind.BYOK, orphan.hash, other_key(life))
    life.later(hours=2)

    await life.audit(repair=True)
    superseded = [key.hash for key in life.ledger.superseded]
    life.later(hours=24)
    await life.retire()

    assert superseded == [orphan.hash]
    assert orphan.hash not in {*life.openrouter.keys, *which["allowed_api_key_hashes"]}


async def test_what_the_account_lacks_is_a_notice(life: Life) -> None:
    """An audit goes on without it."""
    await life.rotate()
    life.openrouter.lacks = {"byok": 404, "observability": 403}

    found = await about_lists(life)

    assert [finding.kind for finding in found] == [Kind.NOT_SEEN, Kind.NOT_SEEN]
    assert not any(finding.needs_person for finding in found)


async def test_an_account_without_workspaces_is_audited(life: Life) -> None:
    """Its keys tell which workspace it has, so that none is taken for one of another account."""
    life.change(overlap=timedelta(hours=24))
    await life.rotate()
    await life.rotate()
    life.openrouter.lacks = {"workspaces": 404}
    life.openrouter.delete_key(life.key(life.superseded.hash))

    kinds = {finding.kind for finding in (await life.audit()).findings}

    assert kinds == {Kind.NOT_SEEN, Kind.SUPERSEDED_KEY_DIFFERS}


async def test_logging_of_chosen_keys_is_a_notice(life: Life) -> None:
    """In a workspace that a rotation uses."""
    await life.rotate()
    settings = {"is_observability_io_logging_enabled": True, "io_logging_api_key_ids": [7]}
    life.openrouter.workspace_settings[life.openrouter.accounts[0].workspaces[0]] = settings

    assert [finding.kind for finding in await about_lists(life)] == [Kind.LOGS_CHOSEN_KEYS]
