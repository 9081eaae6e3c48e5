"""The OpenRouter stand-in, judged by OpenRouter's own Python SDK."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from uuid import uuid4

import httpx
import pytest
from openrouter import OpenRouter, errors

from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.server import Fault
from tests.sandbox.conftest import StandIn


def test_a_key_lives_its_whole_life(stand_in: StandIn) -> None:
    """Create, read, change, disable and delete answer as the SDK expects."""
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
    """A page holds 100 keys, the newest first, and the next one goes on where it ended."""
    stand_in.state.seed_keys(150)

    with stand_in.sdk() as sdk:
        first, second = sdk.api_keys.list(offset=0).data, sdk.api_keys.list(offset=100).data

    assert (len(first), len(second)) == (100, 50)
    assert (first[0].name, second[-1].name) == ("seeded 149", "seeded 0")


def test_the_list_hides_disabled_keys_unless_asked(stand_in: StandIn) -> None:
    """A disabled key is in the list only where it is asked for."""
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "off"})
    key.disabled = True

    with stand_in.sdk() as sdk:
        assert sdk.api_keys.list().data == []
        assert [k.hash for k in sdk.api_keys.list(include_disabled=True).data] == [key.hash]


def test_a_key_sees_itself(stand_in: StandIn) -> None:
    """A key's own view tells label and limit, and that it manages nothing; the management key's tells that it does."""
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
    """A normal key gets 401 or 403 at a management endpoint, as set."""
    stand_in.state.not_management_status = status
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})

    with stand_in.sdk(key.secret) as sdk, pytest.raises(errors.OpenRouterError) as refused:
        sdk.api_keys.list()

    assert refused.value.status_code == status


def test_the_list_hides_expired_keys_unless_asked(stand_in: StandIn) -> None:
    """An expired key is in the list only where it is asked for, which only the SDK knows."""
    key = stand_in.new_key(expires_at="2026-12-01T00:00:00Z")
    stand_in.now += timedelta(hours=1)

    with stand_in.sdk() as sdk:
        assert sdk.api_keys.list().data == []
        assert [k.hash for k in sdk.api_keys.list(include_expired=True).data] == [key.hash]


def test_a_list_is_of_one_workspace(stand_in: StandIn) -> None:
    """The list holds the default workspace's keys, or those of the workspace that is asked for."""
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
    """The SDK may move a key, which keeps its plaintext."""
    account = stand_in.state.accounts[0]
    account.workspaces.append(str(uuid4()))
    key = stand_in.new_key()

    with stand_in.sdk() as sdk:
        moved = sdk.api_keys.update(hash=key.hash, workspace_id=account.workspaces[1])

    assert (moved.data.workspace_id, stand_in.state.is_live(key.secret)) == (account.workspaces[1], True)


def test_workspaces_are_listed(stand_in: StandIn) -> None:
    """An account has a default workspace, which the list and the single view show alike."""
    with stand_in.sdk() as sdk:
        listed = sdk.workspaces.list()
        assert listed is not None
        single = sdk.workspaces.get(id=stand_in.state.accounts[0].workspaces[0])

    assert listed.result.data == [single.data]


def test_an_expiry_in_utc_is_kept(stand_in: StandIn) -> None:
    """A key created with an expiry says the same moment back."""
    with stand_in.sdk() as sdk:
        created = sdk.api_keys.create(name="checkout", expires_at=datetime(2027, 1, 1, tzinfo=UTC))

    assert created.data.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_creator_is_kept(stand_in: StandIn) -> None:
    """A key shows the member for whom it was made, and the management key's own user without one."""
    with stand_in.sdk() as sdk:
        named = sdk.api_keys.create(name="checkout", creator_user_id="user_2dHF").data
        unnamed = sdk.api_keys.create(name="checkout").data

    assert (named.creator_user_id, unnamed.creator_user_id) == ("user_2dHF", stand_in.state.accounts[0].user_id)


def test_workspaces_are_paged(stand_in: StandIn) -> None:
    """The SDK walks through the list in pages of the size that it asks for."""
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
    """A management key tells when it ends, and gets 401 from then on."""
    stand_in.state.accounts[0].management_keys_expire[DEFAULT_MANAGEMENT_KEY] = stand_in.now + timedelta(hours=1)

    with stand_in.sdk() as sdk:
        told = sdk.api_keys.get_current_key_metadata().data.expires_at
        stand_in.now += timedelta(hours=1)
        for call in (sdk.api_keys.get_current_key_metadata, sdk.api_keys.list):
            with pytest.raises(errors.UnauthorizedResponseError):
                call()

    assert told == stand_in.now


def test_the_label_shows_both_ends_of_the_plaintext(stand_in: StandIn) -> None:
    """A key is 64 hex digits behind its prefix, and its label shows the first three and the last four."""
    created = stand_in.manage("POST", "/keys", {"name": "checkout"}).json()

    assert re.fullmatch(r"sk-or-v1-[0-9a-f]{64}", created["key"])
    assert created["data"]["label"] == f"sk-or-v1-{created['key'][9:12]}...{created['key'][-4:]}"


def test_the_hash_does_not_follow_from_the_plaintext(stand_in: StandIn) -> None:
    """The hash cannot be computed from the key, so that no client gets away with doing so."""
    key = stand_in.new_key()

    assert key.hash not in {sha256(text.encode()).hexdigest() for text in (key.secret, key.secret[9:])}


def test_the_plaintext_may_stand_in_data(stand_in: StandIn) -> None:
    """Where the answer to a create holds the plaintext can be set: beside the data, or in it."""
    answers = []
    for place in ("top", "data"):
        stand_in.state.change({"plaintext_in": place})
        answers.append(stand_in.manage("POST", "/keys", {"name": "checkout"}).json())

    top, data = answers
    assert ("key" in top, "key" in top["data"]) == (True, False)
    assert ("key" in data, "key" in data["data"]) == (False, True)


def test_a_key_may_not_tell_when_it_was_used(stand_in: StandIn) -> None:
    """The moment of the last use, which the description does not know, can be left out."""
    key = stand_in.new_key()
    stand_in.call(key.secret)
    told = stand_in.manage("GET", f"/keys/{key.hash}").json()["data"]["last_used_at"]

    stand_in.state.with_last_used_at = False

    assert datetime.fromisoformat(told) == stand_in.now
    assert "last_used_at" not in stand_in.manage("GET", f"/keys/{key.hash}").json()["data"]


def test_a_completion_is_answered_to_a_live_key_only(stand_in: StandIn) -> None:
    """The SDK gets a completion with a live key, and its error for 401 once the key is deleted."""
    key = stand_in.new_key()
    messages = [{"role": "user", "content": "hello"}]

    with stand_in.sdk(key.secret) as sdk:
        answer = sdk.chat.send(model="sandbox", messages=messages)
        stand_in.state.delete_key(key)
        with pytest.raises(errors.UnauthorizedResponseError):
            sdk.chat.send(model="sandbox", messages=messages)

    assert answer.choices[0].finish_reason == "stop"


def test_accounts_do_not_see_each_other(stand_in: StandIn) -> None:
    """Keys and guardrails of one account do not exist for another one's management key."""
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
    """A management key that was revoked gets 401, and the account's other one goes on working."""
    keys = stand_in.state.accounts[0].management_keys
    keys.add("sk-or-v1-second-management-key")
    keys.discard(DEFAULT_MANAGEMENT_KEY)

    with stand_in.sdk() as sdk, pytest.raises(errors.UnauthorizedResponseError):
        sdk.api_keys.list()
    with stand_in.sdk("sk-or-v1-second-management-key") as sdk:
        assert sdk.api_keys.list().data == []


def test_errors_have_the_documented_shape(stand_in: StandIn) -> None:
    """Unknown keys, bad bodies and rate limits are answered so that the SDK knows them."""
    with stand_in.sdk() as sdk:
        with pytest.raises(errors.NotFoundResponseError):
            sdk.api_keys.get(hash="unknown")
        stand_in.app.state.faults.add(
            Fault(
                status=429, body='{"error":{"code":429,"message":"slow"}}', headers={"content-type": "application/json"}
            )
        )
        with pytest.raises(errors.TooManyRequestsResponseError):
            sdk.api_keys.list()


def test_a_guardrail_is_assigned_to_a_key(stand_in: StandIn) -> None:
    """A key holds at most one guardrail; assigning another one replaces it."""
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})

    with stand_in.sdk() as sdk:
        first, second = (sdk.guardrails.create(name=name).data.id for name in ("one", "two"))
        sdk.guardrails.bulk_assign_keys(id=first, key_hashes=[key.hash])
        assigned = sdk.guardrails.bulk_assign_keys(id=second, key_hashes=[key.hash])

        assert assigned.assigned_count == 1
        assert [_assigned(sdk, guardrail) for guardrail in (first, second)] == [[], [key.hash]]


def test_a_guardrail_is_taken_only_from_the_keys_that_hold_it(stand_in: StandIn) -> None:
    """Unassigning through one guardrail leaves a key alone that holds another one."""
    key = stand_in.new_key()

    with stand_in.sdk() as sdk:
        held, other = (sdk.guardrails.create(name=name).data.id for name in ("held", "other"))
        sdk.guardrails.bulk_assign_keys(id=held, key_hashes=[key.hash])
        missed = sdk.guardrails.bulk_unassign_keys(id=other, key_hashes=[key.hash])
        still = _assigned(sdk, held)
        taken = sdk.guardrails.bulk_unassign_keys(id=held, key_hashes=[key.hash])

        assert (missed.unassigned_count, still) == (0, [key.hash])
        assert (taken.unassigned_count, _assigned(sdk, held)) == (1, [])


def test_all_assignments_are_listed(stand_in: StandIn) -> None:
    """One list tells of every key of the account that holds a guardrail, in pages."""
    keys = [stand_in.new_key() for _ in range(3)]
    stand_in.new_key()
    stranger = stand_in.state.add_account("sk-or-v1-another-management-key")
    stand_in.state.add_key(stranger, {"name": "not ours"}).guardrail_id = str(uuid4())

    with stand_in.sdk() as sdk:
        one, two = (sdk.guardrails.create(name=name).data.id for name in ("one", "two"))
        sdk.guardrails.bulk_assign_keys(id=one, key_hashes=[keys[0].hash, keys[1].hash])
        sdk.guardrails.bulk_assign_keys(id=two, key_hashes=[keys[2].hash])
        page, found = sdk.guardrails.list_key_assignments(limit=2), dict[str, str]()
        while page is not None:
            assert page.result.total_count == 3
            found |= {assignment.key_hash: assignment.guardrail_id for assignment in page.result.data}
            page = page.next()

    assert found == {keys[0].hash: one, keys[1].hash: one, keys[2].hash: two}


def test_assigning_again_may_count_for_nothing(stand_in: StandIn) -> None:
    """Whether a key that has the guardrail already counts as assigned can be set; it has it either way."""
    key = stand_in.new_key()
    counts = []

    with stand_in.sdk() as sdk:
        guardrail = sdk.guardrails.create(name="one").data.id
        for counted in (True, True, False):
            stand_in.state.change({"counts_reassigned": counted})
            counts.append(sdk.guardrails.bulk_assign_keys(id=guardrail, key_hashes=[key.hash]).assigned_count)

        assert counts == [1, 1, 0]
        assert _assigned(sdk, guardrail) == [key.hash]


def test_an_unknown_key_or_guardrail_is_not_assigned(stand_in: StandIn) -> None:
    """An unknown key counts for nothing, and an unknown guardrail is a 404."""
    key = stand_in.new_key()

    with stand_in.sdk() as sdk:
        guardrail = sdk.guardrails.create(name="one").data.id
        assert sdk.guardrails.bulk_assign_keys(id=guardrail, key_hashes=["unknown"]).assigned_count == 0
        for call in (sdk.guardrails.bulk_assign_keys, sdk.guardrails.bulk_unassign_keys):
            with pytest.raises(errors.NotFoundResponseError):
                call(id=str(uuid4()), key_hashes=[key.hash])


def test_guardrails_are_listed_and_read(stand_in: StandIn) -> None:
    """A guardrail is shown alike by its create, the list and its single view."""
    with stand_in.sdk() as sdk:
        created = sdk.guardrails.create(name="checkout", limit_usd=50, reset_interval="monthly").data
        listed = sdk.guardrails.list()
        assert listed is not None

        assert listed.result.data == [created]
        assert sdk.guardrails.get(id=created.id).data == created


def _assigned(sdk: OpenRouter, guardrail: str) -> list[str]:
    found = sdk.guardrails.list_guardrail_key_assignments(id=guardrail)
    assert found is not None
    return [assignment.key_hash for assignment in found.result.data]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "limit": -1},
        {"name": "x", "limit_reset": "hourly"},
        {"name": "x", "limit": "5"},
        {"name": "x", "limit": True},
        {"name": "x", "include_byok_in_limit": "yes"},
        {"name": "x", "workspace_id": "unknown"},
        {"name": "x", "expires_at": "2027-01-01T00:00:00+02:00"},
        {"name": "x", "expires_at": "2027-01-01T00:00:00"},
        {"name": "x", "expires_at": "2027-01-01T00:00Z"},
        [],
    ],
)
def test_bad_creates_are_refused(stand_in: StandIn, body: object) -> None:
    """A create that the description does not allow is a 400, and no key is made."""
    answer = stand_in.manage("POST", "/keys", body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)
    assert stand_in.state.created == []


@pytest.mark.parametrize("limit", ["NaN", "Infinity", "1e999", "-1e999"])
def test_a_limit_is_a_number(stand_in: StandIn, limit: str) -> None:
    """What JSON cannot say is no limit: it is refused, and the list of keys goes on working."""
    headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}

    answer = httpx.post(f"{stand_in.url}/api/v1/keys", content=f'{{"name": "x", "limit": {limit}}}', headers=headers)

    assert answer.status_code == 400
    assert stand_in.manage("GET", "/keys").json() == {"data": []}


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": 5}, {"disabled": "no"}, {"limit": -1}, {"limit_reset": "x"}]
)
def test_bad_updates_are_refused(stand_in: StandIn, body: dict[str, object]) -> None:
    """An update that is empty, or holds what the description does not allow, is a 400 and changes nothing."""
    key = stand_in.new_key(limit=5)
    before = stand_in.state.show(key)

    answer = stand_in.manage("PATCH", f"/keys/{key.hash}", body)

    assert (answer.status_code, stand_in.state.show(key)) == (400, before)


@pytest.mark.parametrize("offset", ["-1", "x", "²"])
def test_a_bad_offset_is_refused(stand_in: StandIn, offset: str) -> None:
    """A list from nowhere is a 400."""
    assert stand_in.manage("GET", f"/keys?offset={offset}").status_code == 400


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/keys", 405)])
def test_what_does_not_exist_is_an_error_like_any_other(stand_in: StandIn, method: str, path: str, status: int) -> None:
    """An unknown path or method has the documented error's shape too."""
    answer = stand_in.manage(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)


def test_only_live_keys_are_served(stand_in: StandIn) -> None:
    """A deleted, a disabled and an expired key answer 401."""
    keys = [stand_in.state.add_key(stand_in.state.accounts[0], {"name": str(n)}) for n in range(4)]
    keys[1].disabled = True
    keys[2].expires_at = stand_in.now
    stand_in.state.delete_key(keys[3])

    assert [stand_in.call(key.secret).status_code for key in keys] == [200, 401, 401, 401]
    assert [key.hash for key in stand_in.state.live_keys()] == [keys[0].hash]
    assert stand_in.state.requests_failed == 3


def test_a_new_key_may_be_late(stand_in: StandIn) -> None:
    """A new key answers 401 for as long as it is set to."""
    stand_in.state.lag = timedelta(seconds=5)
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})

    early = stand_in.call(key.secret).status_code
    stand_in.now += timedelta(seconds=5)

    assert (early, stand_in.call(key.secret).status_code) == (401, 200)


def test_a_key_is_not_late_because_the_clock_jumps(stand_in: StandIn) -> None:
    """Without a lag a key works at once, even where the clock is set back after it was made."""
    key = stand_in.new_key()

    stand_in.now -= timedelta(hours=1)

    assert stand_in.call(key.secret).status_code == 200


def test_a_new_key_may_be_refused_a_few_times(stand_in: StandIn) -> None:
    """A new key answers 401 as often as it is set to, whichever endpoint it is tried at."""
    stand_in.state.change({"refusals": 2})
    key = stand_in.new_key()

    with stand_in.sdk(key.secret) as own, pytest.raises(errors.UnauthorizedResponseError):
        own.api_keys.get_current_key_metadata()

    assert [stand_in.call(key.secret).status_code for _ in range(2)] == [401, 200]


def test_usage_is_counted_exactly(stand_in: StandIn) -> None:
    """Each completion costs what it is set to, without a rounding error, and shows when the key was used."""
    stand_in.state.cost = Decimal("0.1")
    key = stand_in.new_key(limit=1, limit_reset="daily")
    for _ in range(3):
        stand_in.call(key.secret)

    with stand_in.sdk() as sdk:
        seen = sdk.api_keys.get(hash=key.hash).data

    assert (seen.usage, seen.usage_daily, seen.limit_remaining) == (0.3, 0.3, 0.7)
    assert seen.last_used_at == stand_in.now


@pytest.mark.parametrize("includes", [True, False])
def test_usage_of_the_accounts_own_provider_keys_is_summed_apart(stand_in: StandIn, includes: bool) -> None:
    """BYOK usage has its own sums, and uses up the limit only where the key says so."""
    stand_in.state.change({"cost": "0.4", "byok": True})
    key = stand_in.new_key(limit=0.5, limit_reset="daily", include_byok_in_limit=includes)
    answers = [stand_in.call(key.secret).status_code for _ in range(2)]

    with stand_in.sdk() as sdk:
        seen = sdk.api_keys.get(hash=key.hash).data

    assert answers == [200, 402 if includes else 200]
    assert (seen.usage, seen.byok_usage_daily, seen.limit_remaining) == ((0, 0.4, 0.1) if includes else (0, 0.8, 0.5))


@pytest.mark.parametrize(
    ("used", "read", "sums"),
    [
        ("2026-11-29T23:59:59", "2026-11-30T00:00:00", (0, 0, 1)),  # a Sunday, then a Monday of the same month
        ("2026-11-30T23:59:59", "2026-12-01T00:00:00", (0, 1, 0)),  # a month ends within a week
        ("2026-12-05T23:59:59", "2026-12-06T00:00:00", (0, 1, 1)),  # only a day ends
        ("2026-12-06T00:00:00", "2026-12-06T23:59:59", (1, 1, 1)),  # nothing ends
    ],
)
def test_usage_is_summed_by_utc_day_week_and_month(
    stand_in: StandIn, used: str, read: str, sums: tuple[int, ...]
) -> None:
    """The sums begin anew at midnight UTC, on Monday and on the first; the total never does."""
    stand_in.state.cost = Decimal(1)
    stand_in.now = datetime.fromisoformat(used).replace(tzinfo=UTC)
    key = stand_in.new_key()
    stand_in.call(key.secret)

    stand_in.now = datetime.fromisoformat(read).replace(tzinfo=UTC)

    with stand_in.sdk() as sdk:
        seen = sdk.api_keys.get(hash=key.hash).data
    assert (seen.usage_daily, seen.usage_weekly, seen.usage_monthly) == sums
    assert seen.usage == 1


@pytest.mark.parametrize("status", [402, 403])
def test_a_key_over_its_limit_is_refused_as_set(stand_in: StandIn, status: int) -> None:
    """A key over its limit gets 402 or 403, as set, and its refused use is not charged."""
    stand_in.state.over_limit_status = status
    key = stand_in.new_key(limit=0)

    assert stand_in.call(key.secret).status_code == status
    assert stand_in.state.usage(key) == 0


@pytest.mark.parametrize(
    ("reset", "later"),
    [("daily", timedelta(hours=1)), ("weekly", timedelta(days=6, hours=1)), ("monthly", timedelta(hours=1))],
)
def test_usage_counts_against_the_limit_until_the_period_ends(stand_in: StandIn, reset: str, later: timedelta) -> None:
    """A key over its limit answers 402 until midnight UTC, Monday, or the first of the month."""
    stand_in.state.cost = Decimal("0.6")
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout", "limit": 1, "limit_reset": reset})
    spent = [stand_in.call(key.secret).status_code for _ in range(2)]

    stand_in.now += later

    assert (spent, stand_in.call(key.secret).status_code) == ([200, 402], 200)


def test_a_lost_answer_has_taken_effect(stand_in: StandIn) -> None:
    """A fault after the effect loses the answer and keeps the effect; one before it keeps the effect away."""
    headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}
    for when in ("before", "after"):
        stand_in.app.state.faults.add(Fault(when, "POST", "/keys$", times=1))
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{stand_in.url}/api/v1/keys", json={"name": when}, headers=headers)

    assert [key.name for key in stand_in.state.live_keys()] == ["after"]


def test_options_are_changed_over_http(stand_in: StandIn) -> None:
    """Whoever drives the stand-in from another process turns its switches over HTTP."""
    wanted = {"plaintext_in": "data", "refusals": 1, "lag": 1.5, "cost": "0.25", "over_limit_status": 403}

    answer = httpx.patch(f"{stand_in.url}/_sandbox/options", json=wanted)

    assert answer.json() == {"changed": sorted(wanted)}
    state = stand_in.state
    assert (state.plaintext_in, state.refusals, state.over_limit_status) == ("data", 1, 403)
    assert (state.lag, state.cost) == (timedelta(seconds=1.5), Decimal("0.25"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": 1},
        {"cost": "NaN"},
        {"cost": -1},
        {"lag": "soon"},
        {"plaintext_in": "both"},
        {"over_limit_status": 500},
    ],
)
def test_an_option_that_cannot_be_changes_nothing(stand_in: StandIn, wrong: dict[str, object]) -> None:
    """A change with one wrong option is refused as a whole."""
    answer = httpx.patch(f"{stand_in.url}/_sandbox/options", json={"refusals": 9, **wrong})

    assert (answer.status_code, stand_in.state.refusals) == (400, 0)
