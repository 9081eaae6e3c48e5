"""Which keys the OpenRouter stand-in serves, how it counts usage, and how it enforces limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from openrouter import errors

from tests.sandbox.conftest import StandIn


def test_a_completion_is_answered_to_a_live_key_only(stand_in: StandIn) -> None:
    """With a live key the SDK gets a completion, and with a deleted key its error for 401."""
    key = stand_in.new_key()
    messages = [{"role": "user", "content": "hello"}]

    with stand_in.sdk(key.secret) as sdk:
        answer = sdk.chat.send(model="sandbox", messages=messages)
        stand_in.state.delete_key(key)
        with pytest.raises(errors.UnauthorizedResponseError):
            sdk.chat.send(model="sandbox", messages=messages)

    assert answer.choices[0].finish_reason == "stop"


def test_only_live_keys_are_served(stand_in: StandIn) -> None:
    """Deleted, disabled and expired keys get 401."""
    keys = [stand_in.state.add_key(stand_in.state.accounts[0], {"name": str(n)}) for n in range(4)]
    keys[1].disabled = True
    keys[2].expires_at = stand_in.now
    stand_in.state.delete_key(keys[3])

    assert [stand_in.call(key.secret).status_code for key in keys] == [200, 401, 401, 401]
    assert [key.hash for key in stand_in.state.live_keys()] == [keys[0].hash]
    assert stand_in.state.requests_failed == 3


def test_usage_is_counted_exactly(stand_in: StandIn) -> None:
    """Every completion adds the configured cost without a rounding error, and updates the time of the last use."""
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
    """BYOK usage has its own sums, and counts towards the limit only if the key includes it."""
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
        ("2026-11-29T23:59:59", "2026-11-30T00:00:00", (0, 0, 1)),  # Sunday, then Monday of the same month
        ("2026-11-30T23:59:59", "2026-12-01T00:00:00", (0, 1, 0)),  # a month ends within a week
        ("2026-12-05T23:59:59", "2026-12-06T00:00:00", (0, 1, 1)),  # only a day ends
        ("2026-12-06T00:00:00", "2026-12-06T23:59:59", (1, 1, 1)),  # nothing ends
    ],
)
def test_usage_is_summed_by_utc_day_week_and_month(
    stand_in: StandIn, used: str, read: str, sums: tuple[int, ...]
) -> None:
    """The sums restart at midnight UTC, on Monday and on the first of the month; the total never does."""
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
    """A key over its limit gets the configured status, 402 or 403, and the refused request is not charged."""
    stand_in.state.over_limit_status = status
    key = stand_in.new_key(limit=0)

    assert stand_in.call(key.secret).status_code == status
    assert stand_in.state.usage(key) == 0


@pytest.mark.parametrize(
    ("reset", "later"),
    [("daily", timedelta(hours=1)), ("weekly", timedelta(days=6, hours=1)), ("monthly", timedelta(hours=1))],
)
def test_usage_counts_against_the_limit_until_the_period_ends(stand_in: StandIn, reset: str, later: timedelta) -> None:
    """A key over its limit gets 402 until midnight UTC, Monday, or the first of the month."""
    stand_in.state.cost = Decimal("0.6")
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout", "limit": 1, "limit_reset": reset})
    spent = [stand_in.call(key.secret).status_code for _ in range(2)]

    stand_in.now += later

    assert (spent, stand_in.call(key.secret).status_code) == ([200, 402], 200)
