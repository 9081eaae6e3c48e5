"""Amounts, times and names are sent and read exactly, and unset fields are not sent."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from blocks.errors import ConfigurationError, UnexpectedAnswerError
from blocks.openrouter.keys import ApiKey, KeyRequest, Standing
from tests.blocks.openrouter.conftest import KEY, PLAINTEXT, Account, Server, always


async def test_missing_fields_are_named_and_unknown_ones_tolerated() -> None:
    """A response without a field is an error that names the field and quotes nothing."""
    body = {"data": {k: v for k, v in KEY.items() if k != "disabled"} | {"surprise": "value-of-it"}}

    async with always(200, body).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="disabled") as failed:
            await client.get_key("f01d")

    assert "value-of-it" not in str(failed.value)


AMOUNTS = st.decimals(allow_nan=False, allow_infinity=False)


@given(AMOUNTS)
async def test_money_is_read_to_the_last_digit(amount: Decimal) -> None:
    """An amount in a response is the exact decimal of its text, however many digits it has."""
    body = json.dumps({"data": {**KEY, "usage": "HERE"}}).replace('"HERE"', str(amount))
    server = Server(lambda _request: httpx.Response(200, text=body))

    async with server.client() as client:
        assert (await client.get_key("f01d")).usage == amount


@given(AMOUNTS)
async def test_money_is_written_to_the_last_digit(amount: Decimal) -> None:
    """An amount in a request is a JSON number with all its digits, for creates and changes alike."""
    server = Server(lambda _request: httpx.Response(201, json={"data": KEY, "key": PLAINTEXT}))

    async with server.client() as client:
        await client.create_key(KeyRequest(name="checkout", limit=amount))
        await client.update_key("f01d", limit=amount)

    for request in server.seen:
        assert request.headers["Content-Type"] == "application/json"
        sent = json.loads(request.content, parse_float=Decimal, parse_int=Decimal)["limit"]
        assert (type(sent), sent) == (Decimal, amount)


@pytest.mark.parametrize("amount", ["NaN", "Infinity"])
async def test_what_is_no_amount_is_not_sent(amount: str) -> None:
    """JSON has no number for it, so nothing is sent."""
    server = always(200, {"data": KEY})

    async with server.client() as client:
        with pytest.raises(ConfigurationError):
            await client.update_key("f01d", limit=Decimal(amount))
        with pytest.raises(ValidationError):
            KeyRequest(name="checkout", limit=Decimal(amount))

    assert server.seen == []


USAGE = {"usage": 1000, "usage_daily": 1, "usage_weekly": 10, "usage_monthly": 100}
BYOK_USAGE = {"byok_usage": 0.4, "byok_usage_daily": 0.1, "byok_usage_weekly": 0.2, "byok_usage_monthly": 0.3}


@pytest.mark.parametrize(
    ("reset", "own", "with_byok"),
    [
        ("daily", "1", "1.1"),
        ("weekly", "10", "10.2"),
        ("monthly", "100", "100.3"),
        (None, "1000", "1000.4"),
    ],
)
async def test_what_counts_towards_the_limit(reset: str | None, own: str, with_byok: str) -> None:
    """The sum covers the limit's own period, with BYOK usage only if the limit includes it."""
    found = []
    for includes in (False, True):
        body = {"data": {**KEY, **USAGE, **BYOK_USAGE, "limit_reset": reset, "include_byok_in_limit": includes}}
        async with always(200, body).client() as client:
            found.append((await client.get_key("f01d")).spent(reset))

    assert found == [Decimal(own), Decimal(with_byok)]


async def test_what_was_left_open_is_not_sent() -> None:
    """A request leaves out workspace, creator and expiry if they are unset."""
    assert KeyRequest(name="checkout").body() == {
        "name": "checkout",
        "limit": None,
        "limit_reset": None,
        "include_byok_in_limit": False,
    }


async def test_a_creator_is_named() -> None:
    """The request contains the member of an organisation for whom the key is created."""
    assert KeyRequest(name="checkout", creator_user_id="user_2dHF").body()["creator_user_id"] == "user_2dHF"


@given(st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1)), st.integers(-14, 14))  # noqa: DTZ001 - the zone follows
def test_an_expiry_is_sent_in_the_one_form_that_is_taken(moment: datetime, hours: int) -> None:
    """In any time zone, an expiry is sent as UTC in whole seconds, and equals that of the request."""
    given_moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))

    request = KeyRequest(name="checkout", expires_at=given_moment)

    sent = request.body()["expires_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", sent)
    assert datetime.fromisoformat(sent) == given_moment.replace(microsecond=0) == request.expires_at


def test_an_expiry_has_a_time_zone() -> None:
    """A time without a zone is ambiguous."""
    with pytest.raises(ValidationError, match="expires_at"):
        KeyRequest(name="checkout", expires_at=datetime(2027, 1, 1))  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize("told", ["2027-01-01T00:00:00Z", "2027-01-01T00:00:00.000+00:00", "2027-01-01T00:00:00"])
def test_a_moment_in_an_answer_is_utc(told: str) -> None:
    """However OpenRouter writes a time, it can be compared with the clock."""
    key = ApiKey.model_validate({**KEY, "expires_at": told})

    assert key.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


async def test_a_key_is_made_for_a_member_until_a_moment(account: Account) -> None:
    """The new key has the creator and the expiry of the request, and stops working then."""
    ends = account.now + timedelta(days=1, microseconds=5)
    wanted = KeyRequest(name="checkout", creator_user_id="user_2dHF", expires_at=ends)

    created = await account.client.create_key(wanted)
    works = await account.client.accepts(created.secret)
    account.now = ends

    assert (created.key.creator_user_id, created.key.expires_at) == ("user_2dHF", wanted.expires_at)
    assert [works, await account.client.accepts(created.secret)] == [Standing.VALID, Standing.REFUSED]


def test_a_label_is_no_markup() -> None:
    """Sentences and tables show it, so nothing in it is rendered; a usual one stays as it is."""
    usual, odd = (ApiKey.model_validate(KEY | {"label": label}) for label in (KEY["label"], "<!here> | `[x](y)`"))

    assert usual.label == KEY["label"]
    assert odd.label == "(!here) - '(x)(y)'"
