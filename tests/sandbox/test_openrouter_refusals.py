"""Requests that the OpenRouter stand-in refuses, and that must not change anything."""

from __future__ import annotations

import httpx
import pytest
from openrouter import errors

from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.server import Fault
from tests.sandbox.conftest import StandIn


def test_errors_have_the_documented_shape(stand_in: StandIn) -> None:
    """The SDK recognizes the errors for an unknown key and for a rate limit."""
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
    """A create that the API description does not permit gets 400, and no key is created."""
    answer = stand_in.manage("POST", "/keys", body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)
    assert stand_in.state.created == []


@pytest.mark.parametrize("limit", ["NaN", "Infinity", "1e999", "-1e999"])
def test_a_limit_is_a_number(stand_in: StandIn, limit: str) -> None:
    """A number that JSON cannot express is refused; otherwise it would break the list of keys."""
    headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}

    answer = httpx.post(f"{stand_in.url}/api/v1/keys", content=f'{{"name": "x", "limit": {limit}}}', headers=headers)

    assert answer.status_code == 400
    assert stand_in.manage("GET", "/keys").json() == {"data": []}


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": 5}, {"disabled": "no"}, {"limit": -1}, {"limit_reset": "x"}]
)
def test_bad_updates_are_refused(stand_in: StandIn, body: dict[str, object]) -> None:
    """An update that is empty or not permitted by the API description gets 400 and changes nothing."""
    key = stand_in.new_key(limit=5)
    before = stand_in.state.show(key)

    answer = stand_in.manage("PATCH", f"/keys/{key.hash}", body)

    assert (answer.status_code, stand_in.state.show(key)) == (400, before)


@pytest.mark.parametrize("offset", ["-1", "x", "²"])
def test_a_bad_offset_is_refused(stand_in: StandIn, offset: str) -> None:
    """An invalid offset gets 400."""
    assert stand_in.manage("GET", f"/keys?offset={offset}").status_code == 400


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/keys", 405)])
def test_what_does_not_exist_is_an_error_like_any_other(stand_in: StandIn, method: str, path: str, status: int) -> None:
    """An unknown path or method also gets an error in the documented format."""
    answer = stand_in.manage(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
