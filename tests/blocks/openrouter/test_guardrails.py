"""A key has the guardrail that was last assigned to it, and an unconfirmed assignment is an error."""

from __future__ import annotations

import httpx
import pytest

from blocks.errors import NotFoundError, UnexpectedAnswerError
from tests.blocks.openrouter.conftest import Account, Server, always


async def test_a_guardrail_is_assigned_in_place_of_another_one(account: Account) -> None:
    """The last assignment replaces all earlier ones."""
    key, old, new = account.key(), account.guardrail(), account.guardrail()

    for guardrail in (old, new):
        await account.client.assign_guardrail(guardrail, key)

    assert await account.client.guardrail_of(key) == new


@pytest.mark.parametrize("counts_reassigned", [True, False])
async def test_a_guardrail_can_be_assigned_again(account: Account, counts_reassigned: bool) -> None:
    """As after a lost answer, a repeated assignment succeeds, whether or not OpenRouter counts it."""
    account.state.change({"counts_reassigned": counts_reassigned})
    key, guardrail = account.key(), account.guardrail()

    for _ in range(2):
        await account.client.assign_guardrail(guardrail, key)

    assert await account.client.guardrail_of(key) == guardrail


@pytest.mark.parametrize("count", [0, 2, "1", True, None])
async def test_an_unconfirmed_guardrail_is_an_error(count: object) -> None:
    """It is an error if OpenRouter neither counts exactly this key nor lists it under the guardrail."""
    page = {"data": [], "total_count": 0}
    server = Server(
        lambda asked: httpx.Response(200, json=page if asked.method == "GET" else {"assigned_count": count})
    )

    async with server.client() as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.assign_guardrail("a-guardrail", "f01d")


@pytest.mark.parametrize("count", [2, -1, "1", True, None])
async def test_an_unassignment_of_other_keys_is_not_believed(count: object) -> None:
    """The request names one key, so OpenRouter may report one or no unassigned key, but not more."""
    async with always(200, {"unassigned_count": count}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="unassigned_count"):
            await client.unassign_guardrail("a-guardrail", "f01d")


async def test_a_key_that_is_gone_cannot_be_put_under_a_guardrail(account: Account) -> None:
    """The error for an unknown key names the guardrail of the request."""
    guardrail = account.guardrail()

    with pytest.raises(UnexpectedAnswerError, match=guardrail):
        await account.client.assign_guardrail(guardrail, "f01d")


async def test_a_guardrail_is_taken_away_once_and_for_all(account: Account) -> None:
    """Repeating it does no harm, and a key with another guardrail keeps that one."""
    guardrail, other = account.guardrail(), account.guardrail()
    key, neighbour = account.key(guardrail), account.key(other)

    for key_hash in (key, key, neighbour):
        await account.client.unassign_guardrail(guardrail, key_hash)

    assert [await account.client.guardrail_of(one) for one in (key, neighbour)] == [None, other]


async def test_a_guardrail_that_is_gone_is_named(account: Account) -> None:
    """The error for a 404 of any call about a guardrail says which one does not exist."""
    key, client = account.key(), account.client

    for call in (client.assign_guardrail("gone", key), client.unassign_guardrail("gone", key)):
        with pytest.raises(NotFoundError, match="has no guardrail gone in this account"):
            await call


async def test_the_guardrail_of_a_key_is_looked_for_on_every_page(account: Account) -> None:
    """The last key of hundreds is found, and a key without a guardrail has none."""
    guardrail = account.guardrail()
    keys = [account.key(guardrail) for _ in range(250)]

    assert await account.client.guardrail_of(keys[-1]) == guardrail
    assert await account.client.guardrail_of(account.key()) is None
