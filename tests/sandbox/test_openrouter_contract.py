"""The OpenRouter stand-in, verified with OpenRouter's own Python SDK."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import uuid4

import pytest
from openrouter import errors

from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from tests.sandbox.conftest import StandIn


def test_a_key_lives_its_whole_life(stand_in: StandIn) -> None:
    """The SDK accepts the responses to create, get, update and delete."""
    with stand_in.sdk() as sdk:
        created = sdk.api_keys.create(name="checkout", limit=50, limit_reset="monthly", include_byok_in_limit=True)
        read = sdk.api_keys.get(hash=created.data.hash)
        changed = sdk.api_keys.update(hash=created.data.hash, limit=75, disabled=True)
        deleted = sdk.api_keys.delete(hash=created.data.hash)

    assert (read.data.name, read.data.limit, read.data.limit_reset) == ("checkout", 50, "monthly")
    assert (changed.data.limit, changed.data.disabled) == (75, True)
    assert deleted.DELETED is True
    assert not stand_in.state.is_live(created.key)


def test_the_list_is_paged_newest_first(stand_in: StandIn) -> None:
    """A page holds 100 keys, newest first, and `offset` continues where the previous page ended."""
    stand_in.state.seed_keys(150)

    with stand_in.sdk() as sdk:
        first, second = sdk.api_keys.list(offset=0).data, sdk.api_keys.list(offset=100).data

    assert (len(first), len(second)) == (100, 50)
    assert (first[0].name, second[-1].name) == ("seeded 149", "seeded 0")


def test_the_list_hides_disabled_keys_unless_asked(stand_in: StandIn) -> None:
    """A disabled key is listed only with `include_disabled`."""
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "off"})
    key.disabled = True

    with stand_in.sdk() as sdk:
        assert sdk.api_keys.list().data == []
        assert [k.hash for k in sdk.api_keys.list(include_disabled=True).data] == [key.hash]


def test_a_key_sees_itself(stand_in: StandIn) -> None:
    """`GET /key` shows a key's label and limit, and whether it is a management key."""
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout", "limit": 5})

    with stand_in.sdk(key.secret) as own, stand_in.sdk() as management:
        seen, manager = (
            own.api_keys.get_current_key_metadata().data,
            management.api_keys.get_current_key_metadata().data,
        )

    assert (seen.label, seen.limit, seen.is_management_key) == (key.label, 5, False)
    assert manager.is_management_key is True


@pytest.mark.parametrize("status", [401, 403])
def test_a_normal_key_may_not_manage(stand_in: StandIn, status: int) -> None:
    """A normal key gets the configured status, 401 or 403, at a management endpoint."""
    stand_in.state.not_management_status = status
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})

    with stand_in.sdk(key.secret) as sdk, pytest.raises(errors.OpenRouterError) as refused:
        sdk.api_keys.list()

    assert refused.value.status_code == status


def test_the_list_hides_expired_keys_unless_asked(stand_in: StandIn) -> None:
    """An expired key is listed only with `include_expired`, a parameter that only the SDK documents."""
    key = stand_in.new_key(expires_at="2026-12-01T00:00:00Z")
    stand_in.now += timedelta(hours=1)

    with stand_in.sdk() as sdk:
        assert sdk.api_keys.list().data == []
        assert [k.hash for k in sdk.api_keys.list(include_expired=True).data] == [key.hash]


def test_a_list_is_of_one_workspace(stand_in: StandIn) -> None:
    """The list contains the keys of the requested workspace, by default of the default one."""
    account = stand_in.state.accounts[0]
    account.workspaces.append(str(uuid4()))
    default, other = stand_in.new_key(), stand_in.new_key(workspace_id=account.workspaces[1])

    with stand_in.sdk() as sdk:
        listed = [
            [key.hash for key in sdk.api_keys.list(workspace_id=workspace).data]
            for workspace in (None, *account.workspaces)
        ]

    assert listed == [[default.hash], [default.hash], [other.hash]]


def test_an_update_moves_a_key_to_another_workspace(stand_in: StandIn) -> None:
    """The SDK can move a key to another workspace, and its plaintext stays valid."""
    account = stand_in.state.accounts[0]
    account.workspaces.append(str(uuid4()))
    key = stand_in.new_key()

    with stand_in.sdk() as sdk:
        moved = sdk.api_keys.update(hash=key.hash, workspace_id=account.workspaces[1])

    assert (moved.data.workspace_id, stand_in.state.is_live(key.secret)) == (account.workspaces[1], True)


def test_workspaces_are_listed(stand_in: StandIn) -> None:
    """The default workspace is the same in the list and in its single view."""
    with stand_in.sdk() as sdk:
        listed = sdk.workspaces.list()
        assert listed is not None
        single = sdk.workspaces.get(id=stand_in.state.accounts[0].workspaces[0])

    assert listed.result.data == [single.data]


def test_an_expiry_in_utc_is_kept(stand_in: StandIn) -> None:
    """The expiry in the response is the requested one."""
    with stand_in.sdk() as sdk:
        created = sdk.api_keys.create(name="checkout", expires_at=datetime(2027, 1, 1, tzinfo=UTC))

    assert created.data.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_creator_is_kept(stand_in: StandIn) -> None:
    """A key shows the member for whom it was created; by default, the user of the management key."""
    with stand_in.sdk() as sdk:
        named = sdk.api_keys.create(name="checkout", creator_user_id="user_2dHF").data
        unnamed = sdk.api_keys.create(name="checkout").data

    assert (named.creator_user_id, unnamed.creator_user_id) == ("user_2dHF", stand_in.state.accounts[0].user_id)


def test_workspaces_are_paged(stand_in: StandIn) -> None:
    """The SDK reads the whole list in pages of the requested size."""
    account = stand_in.state.accounts[0]
    account.workspaces.extend(str(uuid4()) for _ in range(2))

    with stand_in.sdk() as sdk:
        page, pages = sdk.workspaces.list(limit=2), []
        while page is not None:
            pages.append([workspace.id for workspace in page.result.data])
            assert page.result.total_count == 3
            page = page.next()

    assert [len(ids) for ids in pages][:2] == [2, 1]
    assert [one for ids in pages for one in ids] == account.workspaces


def test_a_management_key_may_end(stand_in: StandIn) -> None:
    """A management key shows its expiry, and gets 401 from then on."""
    stand_in.state.accounts[0].management_keys_expire[DEFAULT_MANAGEMENT_KEY] = stand_in.now + timedelta(hours=1)

    with stand_in.sdk() as sdk:
        told = sdk.api_keys.get_current_key_metadata().data.expires_at
        stand_in.now += timedelta(hours=1)
        for call in (sdk.api_keys.get_current_key_metadata, sdk.api_keys.list):
            with pytest.raises(errors.UnauthorizedResponseError):
                call()

    assert told == stand_in.now


def test_the_label_shows_both_ends_of_the_plaintext(stand_in: StandIn) -> None:
    """A plaintext is the prefix and 64 hex digits; the label shows the first three and the last four digits."""
    created = stand_in.manage("POST", "/keys", {"name": "checkout"}).json()

    assert re.fullmatch(r"sk-or-v1-[0-9a-f]{64}", created["key"])
    assert created["data"]["label"] == f"sk-or-v1-{created['key'][9:12]}...{created['key'][-4:]}"


def test_the_hash_does_not_follow_from_the_plaintext(stand_in: StandIn) -> None:
    """A client cannot compute the hash from the plaintext, so it must take it from a response."""
    key = stand_in.new_key()

    assert key.hash not in {sha256(text.encode()).hexdigest() for text in (key.secret, key.secret[9:])}


def test_accounts_do_not_see_each_other(stand_in: StandIn) -> None:
    """With another account's management key, this account's keys and guardrails do not exist."""
    stand_in.state.add_account("sk-or-v1-another-management-key")
    key = stand_in.new_key()
    with stand_in.sdk() as sdk:
        guardrail = sdk.guardrails.create(name="one").data.id

    with stand_in.sdk("sk-or-v1-another-management-key") as other:
        assert other.api_keys.list().data == []
        calls: list[Callable[[], object]] = [
            lambda: other.api_keys.get(hash=key.hash),
            lambda: other.api_keys.delete(hash=key.hash),
            lambda: other.guardrails.get(id=guardrail),
            lambda: other.guardrails.bulk_assign_keys(id=guardrail, key_hashes=[key.hash]),
        ]
        for call in calls:
            with pytest.raises(errors.NotFoundResponseError):
                call()


def test_a_revoked_management_key_is_unknown(stand_in: StandIn) -> None:
    """A revoked management key gets 401, and the account's other management key keeps working."""
    keys = stand_in.state.accounts[0].management_keys
    keys.add("sk-or-v1-second-management-key")
    keys.discard(DEFAULT_MANAGEMENT_KEY)

    with stand_in.sdk() as sdk, pytest.raises(errors.UnauthorizedResponseError):
        sdk.api_keys.list()
    with stand_in.sdk("sk-or-v1-second-management-key") as sdk:
        assert sdk.api_keys.list().data == []
