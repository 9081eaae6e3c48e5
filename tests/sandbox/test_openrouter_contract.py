"""The OpenRouter stand-in, judged by OpenRouter's own Python SDK."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from openrouter import OpenRouter, errors
from openrouter.utils import RetryConfig

from sandbox.openrouter import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, create_app
from sandbox.server import Fault, running

MONDAY = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)


class World:
    """The stand-in, its state and its clock."""

    def __init__(self) -> None:
        self.now = MONDAY
        self.state = OpenRouterSandbox(now=lambda: self.now)
        self.app = create_app(self.state)
        self.url = ""

    def sdk(self, key: str = DEFAULT_MANAGEMENT_KEY) -> OpenRouter:
        """The SDK with a key, its retries off."""
        return OpenRouter(api_key=key, server_url=f"{self.url}/api/v1", retry_config=RetryConfig("none", None, False))

    def call(self, key: str) -> httpx.Response:
        """A chat completion with a key."""
        body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
        return httpx.post(f"{self.url}/api/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture
def world() -> Iterator[World]:
    """A stand-in of its own for each test."""
    world = World()
    with running(world.app) as world.url:
        yield world


def test_a_key_lives_its_whole_life(world: World) -> None:
    """Create, read, change, disable and delete answer as the SDK expects."""
    with world.sdk() as sdk:
        created = sdk.api_keys.create(name="checkout", limit=50, limit_reset="monthly", include_byok_in_limit=True)
        read = sdk.api_keys.get(hash=created.data.hash)
        changed = sdk.api_keys.update(hash=created.data.hash, limit=75, disabled=True)
        deleted = sdk.api_keys.delete(hash=created.data.hash)

    assert (read.data.name, read.data.limit, read.data.limit_reset) == ("checkout", 50, "monthly")
    assert (changed.data.limit, changed.data.disabled) == (75, True)
    assert deleted.DELETED is True
    assert not world.state.is_live(created.key)


def test_the_list_is_paged_newest_first(world: World) -> None:
    """A page holds 100 keys, the newest first, and the next one goes on where it ended."""
    world.state.seed_keys(150)

    with world.sdk() as sdk:
        first, second = sdk.api_keys.list(offset=0).data, sdk.api_keys.list(offset=100).data

    assert (len(first), len(second)) == (100, 50)
    assert (first[0].name, second[-1].name) == ("seeded 149", "seeded 0")


def test_the_list_hides_disabled_keys_unless_asked(world: World) -> None:
    """A disabled key is in the list only where it is asked for."""
    key = world.state.add_key(world.state.accounts[0], {"name": "off"})
    key.disabled = True

    with world.sdk() as sdk:
        assert sdk.api_keys.list().data == []
        assert [k.hash for k in sdk.api_keys.list(include_disabled=True).data] == [key.hash]


def test_a_key_sees_itself(world: World) -> None:
    """A key's own view tells label and limit, and that it manages nothing; the management key's tells that it does."""
    key = world.state.add_key(world.state.accounts[0], {"name": "checkout", "limit": 5})

    with world.sdk(key.secret) as own, world.sdk() as management:
        seen, manager = (
            own.api_keys.get_current_key_metadata().data,
            management.api_keys.get_current_key_metadata().data,
        )

    assert (seen.label, seen.limit, seen.is_management_key) == (key.label, 5, False)
    assert manager.is_management_key is True


@pytest.mark.parametrize("status", [401, 403])
def test_a_normal_key_may_not_manage(world: World, status: int) -> None:
    """A normal key gets 401 or 403 at a management endpoint, as set."""
    world.state.not_management_status = status
    key = world.state.add_key(world.state.accounts[0], {"name": "checkout"})

    with world.sdk(key.secret) as sdk, pytest.raises(errors.OpenRouterError) as refused:
        sdk.api_keys.list()

    assert refused.value.status_code == status


def test_errors_have_the_documented_shape(world: World) -> None:
    """Unknown keys, bad bodies and rate limits are answered so that the SDK knows them."""
    with world.sdk() as sdk:
        with pytest.raises(errors.NotFoundResponseError):
            sdk.api_keys.get(hash="unknown")
        world.app.state.faults.add(
            Fault(
                status=429, body='{"error":{"code":429,"message":"slow"}}', headers={"content-type": "application/json"}
            )
        )
        with pytest.raises(errors.TooManyRequestsResponseError):
            sdk.api_keys.list()


def test_a_guardrail_is_assigned_to_a_key(world: World) -> None:
    """A key holds at most one guardrail; assigning another one replaces it."""
    key = world.state.add_key(world.state.accounts[0], {"name": "checkout"})

    with world.sdk() as sdk:
        first, second = (sdk.guardrails.create(name=name).data.id for name in ("one", "two"))
        sdk.guardrails.bulk_assign_keys(id=first, key_hashes=[key.hash])
        assigned = sdk.guardrails.bulk_assign_keys(id=second, key_hashes=[key.hash])

    assert assigned.assigned_count == 1
    assert key.guardrail_id == second


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "limit": -1},
        {"name": "x", "limit_reset": "hourly"},
        {"name": "x", "expires_at": "2027-01-01T00:00:00+02:00"},
    ],
)
def test_bad_requests_are_refused(world: World, body: dict[str, object]) -> None:
    """A create that the description does not allow is a 400, and no key is made."""
    headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}

    answer = httpx.post(f"{world.url}/api/v1/keys", json=body, headers=headers)

    assert answer.status_code == 400
    assert world.state.created == []


def test_only_live_keys_are_served(world: World) -> None:
    """A deleted, a disabled and an expired key answer 401."""
    keys = [world.state.add_key(world.state.accounts[0], {"name": str(n)}) for n in range(4)]
    keys[1].disabled = True
    keys[2].expires_at = world.now
    world.state.delete_key(keys[3])

    assert [world.call(key.secret).status_code for key in keys] == [200, 401, 401, 401]


def test_a_new_key_may_be_late(world: World) -> None:
    """A new key answers 401 for as long as it is set to."""
    world.state.lag = timedelta(seconds=5)
    key = world.state.add_key(world.state.accounts[0], {"name": "checkout"})

    early = world.call(key.secret).status_code
    world.now += timedelta(seconds=5)

    assert (early, world.call(key.secret).status_code) == (401, 200)


@pytest.mark.parametrize(
    ("reset", "later"),
    [("daily", timedelta(hours=1)), ("weekly", timedelta(days=6, hours=1)), ("monthly", timedelta(hours=1))],
)
def test_usage_counts_against_the_limit_until_the_period_ends(world: World, reset: str, later: timedelta) -> None:
    """A key over its limit answers 402 until midnight UTC, Monday, or the first of the month."""
    world.state.cost = Decimal("0.6")
    key = world.state.add_key(world.state.accounts[0], {"name": "checkout", "limit": 1, "limit_reset": reset})
    spent = [world.call(key.secret).status_code for _ in range(2)]

    world.now += later

    assert (spent, world.call(key.secret).status_code) == ([200, 402], 200)


def test_a_lost_answer_has_taken_effect(world: World) -> None:
    """A fault after the effect loses the answer and keeps the effect; one before it keeps the effect away."""
    headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}
    for when in ("before", "after"):
        world.app.state.faults.add(Fault(when, "POST", "/keys$", times=1))
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{world.url}/api/v1/keys", json={"name": when}, headers=headers)

    assert [key.name for key in world.state.live_keys()] == ["after"]
