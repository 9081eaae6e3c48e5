"""The client's calls about one key: which ones are repeated, and which answers are accepted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from blocks.errors import ConfigurationError, NotFoundError, RateLimitedError, ServiceError, UnexpectedAnswerError
from blocks.http import JITTER_SECONDS
from blocks.openrouter.keys import KeyRequest, Standing
from tests.blocks.openrouter.conftest import KEY, PLAINTEXT, Server, always, refused


@pytest.mark.parametrize("body", [{"data": KEY, "key": PLAINTEXT}, {"data": {**KEY, "key": PLAINTEXT}}])
async def test_the_plaintext_is_found_in_both_places(body: dict[str, Any]) -> None:
    """The answer to a create has the plaintext beside `data` or inside it."""
    async with always(201, body).client() as client:
        created = await client.create_key(KeyRequest(name="checkout"))

    assert created.secret == SecretStr(PLAINTEXT)
    assert PLAINTEXT not in repr(created)


async def test_a_create_without_plaintext_may_have_made_a_key() -> None:
    """The error names the missing field, and says that the outcome is unknown."""
    async with always(201, {"data": KEY}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="lacks the field key") as failed:
            await client.create_key(KeyRequest(name="checkout"))

    assert failed.value.outcome_unknown


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_create_that_may_have_made_a_key_is_made_once(status: int) -> None:
    """A failed create is not repeated if a key may exist."""
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
    """After a 4xx no key was created; after a 5xx one may exist."""
    async with always(status).client() as client:
        with pytest.raises(ServiceError) as failed:
            await client.create_key(KeyRequest(name="checkout"))

    assert failed.value.outcome_unknown is unknown


async def test_reads_wait_as_long_as_they_are_told_to() -> None:
    """After a 429, a read is repeated once the seconds of Retry-After have passed."""
    answers = iter([httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(200, json={"data": KEY})])
    server = Server(lambda _request: next(answers))

    async with server.client() as client:
        await client.get_key("f01d")

    assert server.waits == [pytest.approx(3, abs=JITTER_SECONDS)]


async def test_a_create_that_was_put_off_is_made_again() -> None:
    """A 429 proves that no key was created, so the create is repeated after the wait."""
    created = httpx.Response(201, json={"data": KEY, "key": PLAINTEXT})
    answers = iter([httpx.Response(429, headers={"Retry-After": "3"}), created])
    server = Server(lambda _request: next(answers))

    async with server.client() as client:
        assert (await client.create_key(KeyRequest(name="checkout"))).secret == SecretStr(PLAINTEXT)

    assert len(server.waits) == 1


async def test_a_wait_that_is_too_long_is_reported_instead() -> None:
    """A Retry-After of an hour fails the call at once."""
    server = always(429, **{"Retry-After": "3600"})

    async with server.client() as client:
        with pytest.raises(RateLimitedError):
            await client.get_key("f01d")

    assert (len(server.seen), server.waits) == (1, [])


async def test_a_change_is_made_again_when_its_outcome_is_unknown() -> None:
    """A change sets absolute values, so after a 500 it can be repeated unchanged."""
    answers = iter([refused(500), httpx.Response(200, json={"data": {**KEY, "disabled": True}})])
    server = Server(lambda _request: next(answers))

    async with server.client() as client:
        changed = await client.update_key("f01d", disabled=True, limit=Decimal("0.1"))

    assert changed.disabled
    assert [request.content for request in server.seen] == [b'{"disabled":true,"limit":0.1}'] * 2


async def test_a_change_of_a_key_that_is_gone_says_so() -> None:
    """A 404 for a change has its own error, unlike every other failure."""
    async with always(404).client() as client:
        with pytest.raises(NotFoundError):
            await client.update_key("f01d", disabled=True)


@pytest.mark.parametrize(("status", "body", "deleted"), [(200, {"deleted": True}, True), (404, None, False)])
async def test_a_key_that_is_gone_counts_as_deleted(status: int, body: Any, deleted: bool) -> None:
    """A 404 for a delete means that the key no longer exists, which is what was wanted."""
    async with always(status, body).client() as client:
        assert await client.delete_key("f01d") is deleted


async def test_an_unconfirmed_delete_is_an_error() -> None:
    """A 200 that does not confirm the deletion is an error."""
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
    """402 and 403 mean that a key is valid but may not spend; only 401 means that it is invalid."""
    body = {"data": {"label": "sk-or-v1-the...ey"}} if status == 200 else None

    async with always(status, body).client() as client:
        assert await client.accepts(SecretStr(PLAINTEXT)) is standing


async def test_a_hash_cannot_lead_elsewhere() -> None:
    """A hash is percent-encoded in the path, and one that could lead to another path is rejected."""
    server = always(404)

    async with server.client() as client:
        with pytest.raises(NotFoundError):
            await client.get_key("..credits?x=#y")
        with pytest.raises(ConfigurationError):
            await client.get_key("../credits")

    assert [request.url.raw_path for request in server.seen] == [b"/api/v1/keys/..credits%3Fx%3D%23y"]
