"""The OpenRouter client, over a transport that answers as the description and its deviations say."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from blocks import OpenRouterCredentials
from blocks.errors import (
    ConfigurationError,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    ServiceError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JITTER_SECONDS
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.keys import ApiKey, KeyRequest, Standing
from sandbox.openrouter import create_app
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox

MANAGEMENT = "sk-or-v1-the-management-key"
PLAINTEXT = "sk-or-v1-the-plaintext-of-a-new-key"
KEY: dict[str, Any] = {
    "hash": "f01d",
    "name": "checkout",
    "label": "sk-or-v1-the...ey",
    "disabled": False,
    "limit": 50.1,
    "limit_reset": "monthly",
    "include_byok_in_limit": False,
    "usage": 0,
    "created_at": "2026-12-01T03:30:00Z",
}
Answer = Callable[[httpx.Request], httpx.Response]


class Server:
    """Answers each request and remembers it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seen: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return self.answer(request)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def client(self) -> OpenRouterClient:
        """A client whose requests come here, and which does not really wait."""
        credentials = OpenRouterCredentials(management_key=MANAGEMENT)
        return credentials.get_client(transport=httpx.MockTransport(self), sleep=self._sleep)


def refused(status: int) -> httpx.Response:
    """An error as OpenRouter documents it."""
    return httpx.Response(status, json={"error": {"code": status, "message": "No."}})


def always(status: int, body: Any = None, **headers: str) -> Server:
    """A server with one answer for everything; an error is a documented one, where the body is not given."""
    if status >= 400 and body is None:
        body = {"error": {"code": status, "message": "No."}}
    return Server(lambda _request: httpx.Response(status, json=body, headers=headers))


@pytest.mark.parametrize("body", [{"data": KEY, "key": PLAINTEXT}, {"data": {**KEY, "key": PLAINTEXT}}])
async def test_the_plaintext_is_found_in_both_places(body: dict[str, Any]) -> None:
    """The answer to a create may hold the plaintext beside data or inside it."""
    async with always(201, body).client() as client:
        created = await client.create_key(KeyRequest(name="checkout"))

    assert created.secret == SecretStr(PLAINTEXT)
    assert PLAINTEXT not in repr(created)


async def test_a_create_without_plaintext_may_have_made_a_key() -> None:
    """An answer that lacks the plaintext is an error that names the field, with its outcome unknown."""
    async with always(201, {"data": KEY}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="lacks the field key") as failed:
            await client.create_key(KeyRequest(name="checkout"))

    assert failed.value.outcome_unknown


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_create_that_may_have_made_a_key_is_made_once(status: int) -> None:
    """A failure that leaves open whether there is a key now does not make the client repeat a create."""
    server = always(status)

    async with server.client() as client:
        with pytest.raises(ServiceError):
            await client.create_key(KeyRequest(name="checkout"))

    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "unknown"),
    [(400, False), (401, False), (403, False), (404, False), (429, False), (500, True), (503, True)],
)
async def test_only_a_refusal_is_certain(status: int, unknown: bool) -> None:
    """After a 4xx no key was made; after a 5xx there may be one."""
    async with always(status).client() as client:
        with pytest.raises(ServiceError) as failed:
            await client.create_key(KeyRequest(name="checkout"))

    assert failed.value.outcome_unknown is unknown


async def test_reads_wait_as_long_as_they_are_told_to() -> None:
    """A read that meets 429 is repeated after the seconds of Retry-After."""
    answers = iter([httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(200, json={"data": KEY})])
    server = Server(lambda _request: next(answers))

    async with server.client() as client:
        await client.get_key("f01d")

    assert server.waits == [pytest.approx(3, abs=JITTER_SECONDS)]


async def test_a_create_that_was_put_off_is_made_again() -> None:
    """A 429 shows that no key was made, so that one is made after the wait."""
    created = httpx.Response(201, json={"data": KEY, "key": PLAINTEXT})
    answers = iter([httpx.Response(429, headers={"Retry-After": "3"}), created])
    server = Server(lambda _request: next(answers))

    async with server.client() as client:
        assert (await client.create_key(KeyRequest(name="checkout"))).secret == SecretStr(PLAINTEXT)

    assert len(server.waits) == 1


async def test_a_wait_that_is_too_long_is_reported_instead() -> None:
    """A Retry-After of an hour ends the call at once."""
    server = always(429, **{"Retry-After": "3600"})

    async with server.client() as client:
        with pytest.raises(RateLimitedError):
            await client.get_key("f01d")

    assert (len(server.seen), server.waits) == (1, [])


async def test_missing_fields_are_named_and_unknown_ones_tolerated() -> None:
    """An answer without a field is an error that names it and quotes nothing."""
    body = {"data": {k: v for k, v in KEY.items() if k != "disabled"} | {"surprise": "value-of-it"}}

    async with always(200, body).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="disabled") as failed:
            await client.get_key("f01d")

    assert "value-of-it" not in str(failed.value)


AMOUNTS = st.decimals(allow_nan=False, allow_infinity=False)


@given(AMOUNTS)
async def test_money_is_read_to_the_last_digit(amount: Decimal) -> None:
    """An amount in an answer is the decimal that its text says, however many digits it has."""
    body = json.dumps({"data": {**KEY, "usage": "HERE"}}).replace('"HERE"', str(amount))
    server = Server(lambda _request: httpx.Response(200, text=body))

    async with server.client() as client:
        assert (await client.get_key("f01d")).usage == amount


@given(AMOUNTS)
async def test_money_is_written_to_the_last_digit(amount: Decimal) -> None:
    """An amount in a request is a JSON number that spells the decimal, for a create and for a change alike."""
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
    """JSON has no word for it, so nothing is sent."""
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
    """The sum is that of the limit's own period, with BYOK usage only where the limit includes it."""
    found = []
    for includes in (False, True):
        body = {"data": {**KEY, **USAGE, **BYOK_USAGE, "limit_reset": reset, "include_byok_in_limit": includes}}
        async with always(200, body).client() as client:
            found.append((await client.get_key("f01d")).spent(reset))

    assert found == [Decimal(own), Decimal(with_byok)]


async def test_what_was_left_open_is_not_sent() -> None:
    """A request without workspace, creator and expiry leaves their fields out."""
    assert KeyRequest(name="checkout").body() == {
        "name": "checkout",
        "limit": None,
        "limit_reset": None,
        "include_byok_in_limit": False,
    }


async def test_a_creator_is_named() -> None:
    """The member of an organisation for whom a key is made is sent along."""
    assert KeyRequest(name="checkout", creator_user_id="user_2dHF").body()["creator_user_id"] == "user_2dHF"


@given(st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1)), st.integers(-14, 14))  # noqa: DTZ001 - the zone follows
def test_an_expiry_is_sent_in_the_one_form_that_is_taken(moment: datetime, hours: int) -> None:
    """Whatever the time zone, an expiry is sent as UTC in whole seconds, and is the same as that of the request."""
    given_moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))

    request = KeyRequest(name="checkout", expires_at=given_moment)

    sent = request.body()["expires_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", sent)
    assert datetime.fromisoformat(sent) == given_moment.replace(microsecond=0) == request.expires_at


def test_an_expiry_has_a_time_zone() -> None:
    """A moment that could mean anywhere is refused."""
    with pytest.raises(ValidationError, match="expires_at"):
        KeyRequest(name="checkout", expires_at=datetime(2027, 1, 1))  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize("told", ["2027-01-01T00:00:00Z", "2027-01-01T00:00:00.000+00:00", "2027-01-01T00:00:00"])
def test_a_moment_in_an_answer_is_utc(told: str) -> None:
    """However OpenRouter spells a moment, it can be compared with the clock."""
    key = ApiKey.model_validate({**KEY, "expires_at": told})

    assert key.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


async def test_a_change_is_made_again_when_its_outcome_is_unknown() -> None:
    """A change sets values, so that after a 500 it is sent once more, the same."""
    answers = iter([refused(500), httpx.Response(200, json={"data": {**KEY, "disabled": True}})])
    server = Server(lambda _request: next(answers))

    async with server.client() as client:
        changed = await client.update_key("f01d", disabled=True, limit=Decimal("0.1"))

    assert changed.disabled
    assert [request.content for request in server.seen] == [b'{"disabled":true,"limit":0.1}'] * 2


async def test_a_change_of_a_key_that_is_gone_says_so() -> None:
    """A 404 on a change is told apart from every other failure."""
    async with always(404).client() as client:
        with pytest.raises(NotFoundError):
            await client.update_key("f01d", disabled=True)


class Account:
    """An account of the stand-in, with guardrails and keys, and a client of it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
        self.state = OpenRouterSandbox(now=lambda: self.now)
        credentials = OpenRouterCredentials(management_key=DEFAULT_MANAGEMENT_KEY)
        self.client = credentials.get_client(transport=httpx.ASGITransport(create_app(self.state)))

    def key(self, guardrail: str | None = None) -> str:
        """A new key's hash."""
        key = self.state.add_key(self.state.accounts[0], {"name": "checkout"})
        key.guardrail_id = guardrail
        return key.hash

    def guardrail(self) -> str:
        """A new guardrail's id."""
        guardrail = {"id": str(uuid4()), "workspace_id": self.state.accounts[0].workspaces[0]}
        self.state.guardrails[guardrail["id"]] = guardrail
        return guardrail["id"]


@pytest.fixture
async def account() -> AsyncIterator[Account]:
    """An account of its own for each test."""
    account = Account()
    async with account.client:
        yield account


async def test_a_guardrail_is_assigned_in_place_of_another_one(account: Account) -> None:
    """A key is under the guardrail that was assigned last, and only under that."""
    key, old, new = account.key(), account.guardrail(), account.guardrail()

    for guardrail in (old, new):
        await account.client.assign_guardrail(guardrail, key)

    assert await account.client.guardrail_of(key) == new


@pytest.mark.parametrize("counts_reassigned", [True, False])
async def test_a_guardrail_can_be_assigned_again(account: Account, counts_reassigned: bool) -> None:
    """Whether or not OpenRouter counts it, assigning what is assigned already succeeds, as after a lost answer."""
    account.state.change({"counts_reassigned": counts_reassigned})
    key, guardrail = account.key(), account.guardrail()

    for _ in range(2):
        await account.client.assign_guardrail(guardrail, key)

    assert await account.client.guardrail_of(key) == guardrail


@pytest.mark.parametrize("count", [0, 2, "1", True, None])
async def test_an_unconfirmed_guardrail_is_an_error(count: object) -> None:
    """Where OpenRouter does not count exactly this key and the key is not under the guardrail, nothing is believed."""
    page = {"data": [], "total_count": 0}
    server = Server(
        lambda asked: httpx.Response(200, json=page if asked.method == "GET" else {"assigned_count": count})
    )

    async with server.client() as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.assign_guardrail("a-guardrail", "f01d")


@pytest.mark.parametrize("count", [2, -1, "1", True, None])
async def test_an_unassignment_of_other_keys_is_not_believed(count: object) -> None:
    """One key was named, so that one or none is taken out of a guardrail."""
    async with always(200, {"unassigned_count": count}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="unassigned_count"):
            await client.unassign_guardrail("a-guardrail", "f01d")


async def test_a_key_that_is_gone_cannot_be_put_under_a_guardrail(account: Account) -> None:
    """An unknown key is an error that says which guardrail was meant."""
    guardrail = account.guardrail()

    with pytest.raises(UnexpectedAnswerError, match=guardrail):
        await account.client.assign_guardrail(guardrail, "f01d")


async def test_a_guardrail_is_taken_away_once_and_for_all(account: Account) -> None:
    """A key can be taken out again and again; one that is under another guardrail stays there."""
    guardrail, other = account.guardrail(), account.guardrail()
    key, neighbour = account.key(guardrail), account.key(other)

    for key_hash in (key, key, neighbour):
        await account.client.unassign_guardrail(guardrail, key_hash)

    assert [await account.client.guardrail_of(one) for one in (key, neighbour)] == [None, other]


async def test_a_guardrail_that_is_gone_is_named(account: Account) -> None:
    """A 404 of each call about a guardrail says which one does not exist."""
    key, client = account.key(), account.client

    for call in (client.assign_guardrail("gone", key), client.unassign_guardrail("gone", key)):
        with pytest.raises(NotFoundError, match="has no guardrail gone in this account"):
            await call


async def test_the_guardrail_of_a_key_is_looked_for_on_every_page(account: Account) -> None:
    """A key that stands last among hundreds is found, and one without a guardrail has none."""
    guardrail = account.guardrail()
    keys = [account.key(guardrail) for _ in range(250)]

    assert await account.client.guardrail_of(keys[-1]) == guardrail
    assert await account.client.guardrail_of(account.key()) is None


async def test_pages_may_be_smaller_than_asked_for() -> None:
    """The end of a list is where its total says, not where a page is short."""
    ids = [f"workspace-{number}" for number in range(5)]

    def page(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        shown = [{"id": workspace} for workspace in ids[offset : offset + 2]]
        return httpx.Response(200, json={"data": shown, "total_count": 5})

    async with Server(page).client() as client:
        assert [workspace async for workspace in client.list_workspaces()] == ids


async def test_a_list_that_counts_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose total runs ahead does not keep a run busy for ever."""
    monkeypatch.setattr("blocks.openrouter.api.MAX_PAGES", 3)
    server = always(200, {"data": [{"key_hash": "f01d", "guardrail_id": "one"}], "total_count": 9})

    async with server.client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not end"):
            await client.guardrail_of("another")

    assert len(server.seen) == 3


async def test_all_workspaces_are_listed(account: Account) -> None:
    """Every workspace of the account is met, those beyond the first page too."""
    account.state.accounts[0].workspaces.extend(str(uuid4()) for _ in range(120))

    assert [one async for one in account.client.list_workspaces()] == account.state.accounts[0].workspaces


async def test_a_management_key_tells_when_it_ends(account: Account) -> None:
    """The management key's own view says that it manages keys, and when it will stop to."""
    ends = account.now + timedelta(days=7)
    before = await account.client.about_itself()
    account.state.accounts[0].management_keys_expire[DEFAULT_MANAGEMENT_KEY] = ends

    after = await account.client.about_itself()

    assert (before.manages_keys, before.expires_at, after.expires_at) == (True, None, ends)


async def test_a_key_is_made_for_a_member_until_a_moment(account: Account) -> None:
    """Creator and expiry are those of the key that was made, and it does not work any longer."""
    ends = account.now + timedelta(days=1, microseconds=5)
    wanted = KeyRequest(name="checkout", creator_user_id="user_2dHF", expires_at=ends)

    created = await account.client.create_key(wanted)
    works = await account.client.accepts(created.secret)
    account.now = ends

    assert (created.key.creator_user_id, created.key.expires_at) == ("user_2dHF", wanted.expires_at)
    assert [works, await account.client.accepts(created.secret)] == [Standing.VALID, Standing.REFUSED]


@pytest.mark.parametrize(("per_page", "offsets"), [(100, ["0", "100", "120"]), (50, ["0", "50", "100", "120"])])
async def test_the_list_is_walked_to_its_end(per_page: int, offsets: list[str]) -> None:
    """Pages are read until one is empty, however long they are, disabled and expired keys included."""
    keys = [{**KEY, "hash": f"f{number}"} for number in range(120)]

    def page(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        return httpx.Response(200, json={"data": keys[offset : offset + per_page]})

    server = Server(page)
    async with server.client() as client:
        seen = [key.hash async for key in client.list_keys()]

    assert seen == [key["hash"] for key in keys]
    assert [request.url.params["offset"] for request in server.seen] == offsets
    assert server.seen[0].url.params["include_disabled"] == "true"


async def test_a_list_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that always sends a full page does not keep a run busy for ever."""
    monkeypatch.setattr("blocks.openrouter.api.MAX_PAGES", 3)

    async with always(200, {"data": [KEY] * 100}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not end"):
            _ = [key async for key in client.list_keys()]


@pytest.mark.parametrize(("status", "body", "deleted"), [(200, {"deleted": True}, True), (404, None, False)])
async def test_a_key_that_is_gone_counts_as_deleted(status: int, body: Any, deleted: bool) -> None:
    """A 404 on a delete is an answer, not an error."""
    async with always(status, body).client() as client:
        assert await client.delete_key("f01d") is deleted


async def test_an_unconfirmed_delete_is_an_error() -> None:
    """A 200 that does not say deleted is not believed."""
    async with always(200, {}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not confirm"):
            await client.delete_key("f01d")


STANDINGS = {
    200: Standing.VALID,
    401: Standing.REFUSED,
    402: Standing.NO_BUDGET,
    403: Standing.NO_BUDGET,
}


@pytest.mark.parametrize(("status", "standing"), STANDINGS.items())
async def test_a_key_without_budget_still_works(status: int, standing: Standing) -> None:
    """402 and 403 say that a key is valid though it may not spend; only 401 says that it is not."""
    body = {"data": {"label": "sk-or-v1-the...ey"}} if status == 200 else None

    async with always(status, body).client() as client:
        assert await client.accepts(SecretStr(PLAINTEXT)) is standing


async def test_a_hash_cannot_lead_elsewhere() -> None:
    """A hash is percent-encoded in the path, and one that could lead to another path is not sent."""
    server = always(404)

    async with server.client() as client:
        with pytest.raises(NotFoundError):
            await client.get_key("..credits?x=#y")
        with pytest.raises(ConfigurationError):
            await client.get_key("../credits")

    assert [request.url.raw_path for request in server.seen] == [b"/api/v1/keys/..credits%3Fx%3D%23y"]


async def test_no_redirect_is_followed_with_the_credential() -> None:
    """A redirect is an error; the management key is sent nowhere else."""
    server = always(302, Location="https://elsewhere.example")

    async with server.client() as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.get_key("f01d")

    assert [request.url.host for request in server.seen] == ["openrouter.ai"]


@pytest.mark.parametrize(
    ("own_view", "error", "sentence"),
    [
        (refused(401), UnauthorizedError, "does not accept the management key"),
        (
            httpx.Response(200, json={"data": {"label": "x", "is_management_key": False}}),
            ForbiddenError,
            "normal API key",
        ),
        (
            httpx.Response(200, json={"data": {"label": "x", "is_management_key": True}}),
            ForbiddenError,
            "does not let it",
        ),
    ],
    ids=["wrong key", "normal key", "no permission"],
)
async def test_check_tells_the_wrong_keys_apart(
    own_view: httpx.Response, error: type[Exception], sentence: str
) -> None:
    """A check says in one sentence whether the key is wrong, a normal one, or lacks permission."""
    server = Server(lambda request: own_view if request.url.path.endswith("/key") else refused(403))

    async with server.client() as client:
        with pytest.raises(error, match=sentence):
            await client.check()


async def test_check_says_that_it_works() -> None:
    """A check of a usable management key answers with one sentence."""
    async with always(200, {"data": []}).client() as client:
        assert await client.check() == "OpenRouter at https://openrouter.ai accepts the management key."


@pytest.mark.parametrize("key", ["", "with space", "line\nbreak", "ü"])
def test_a_refused_management_key_is_not_quoted(key: str) -> None:
    """A key that cannot be one is refused without being repeated."""
    with pytest.raises(ValueError, match="management_key") as refused:
        OpenRouterCredentials(management_key=key + "-secret\n")

    assert "-secret" not in str(refused.value)
