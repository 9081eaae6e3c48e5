"""The options of the OpenRouter stand-in, for behaviour of the service that is not documented."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from openrouter import errors

from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.server import Fault
from tests.sandbox.conftest import StandIn


def test_the_plaintext_may_stand_in_data(stand_in: StandIn) -> None:
    """It is configurable whether the response to a create has the plaintext next to `data` or in it."""
    answers = []
    for place in ("top", "data"):
        stand_in.state.change({"plaintext_in": place})
        answers.append(stand_in.manage("POST", "/keys", {"name": "checkout"}).json())

    top, data = answers
    assert ("key" in top, "key" in top["data"]) == (True, False)
    assert ("key" in data, "key" in data["data"]) == (False, True)


def test_a_key_may_not_tell_when_it_was_used(stand_in: StandIn) -> None:
    """The time of the last use, which the API description does not have, can be omitted."""
    key = stand_in.new_key()
    stand_in.call(key.secret)
    told = stand_in.manage("GET", f"/keys/{key.hash}").json()["data"]["last_used_at"]

    stand_in.state.with_last_used_at = False

    assert datetime.fromisoformat(told) == stand_in.now
    assert "last_used_at" not in stand_in.manage("GET", f"/keys/{key.hash}").json()["data"]


def test_a_new_key_may_be_late(stand_in: StandIn) -> None:
    """A new key gets 401 for the configured time."""
    stand_in.state.lag = timedelta(seconds=5)
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})

    early = stand_in.call(key.secret).status_code
    stand_in.now += timedelta(seconds=5)

    assert (early, stand_in.call(key.secret).status_code) == (401, 200)


def test_lists_may_know_a_new_key_late(stand_in: StandIn) -> None:
    """A list refuses a new key with 400 for the configured time, although the key works."""
    stand_in.state.change({"list_lag": 5})
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None)
    body = {"allowed_api_key_hashes": [key.hash]}

    early = stand_in.manage("PATCH", f"/byok/{credential['id']}", body).status_code
    works = stand_in.call(key.secret).status_code
    stand_in.now += timedelta(seconds=5)

    assert (early, works) == (400, 200)
    assert stand_in.manage("PATCH", f"/byok/{credential['id']}", body).status_code == 200


def test_a_key_is_not_late_because_the_clock_jumps(stand_in: StandIn) -> None:
    """Without a lag, a new key works at once, even if the clock is set back after its creation."""
    key = stand_in.new_key()

    stand_in.now -= timedelta(hours=1)

    assert stand_in.call(key.secret).status_code == 200


def test_a_new_key_may_be_refused_a_few_times(stand_in: StandIn) -> None:
    """A new key gets 401 for the configured number of requests, at any endpoint."""
    stand_in.state.change({"refusals": 2})
    key = stand_in.new_key()

    with stand_in.sdk(key.secret) as own, pytest.raises(errors.UnauthorizedResponseError):
        own.api_keys.get_current_key_metadata()

    assert [stand_in.call(key.secret).status_code for _ in range(2)] == [401, 200]


def test_a_lost_answer_has_taken_effect(stand_in: StandIn) -> None:
    """A fault after the effect loses only the response; a fault before it prevents the effect."""
    headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}
    for when in ("before", "after"):
        stand_in.app.state.faults.add(Fault(when, "POST", "/keys$", times=1))
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{stand_in.url}/api/v1/keys", json={"name": when}, headers=headers)

    assert [key.name for key in stand_in.state.live_keys()] == ["after"]


def test_options_are_changed_over_http(stand_in: StandIn) -> None:
    """A test can change the options of a stand-in that runs in another process."""
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
