"""A management key is checked, sent to its own host only, and never displayed."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from blocks import OpenRouterCredentials
from blocks.errors import ForbiddenError, UnauthorizedError, UnexpectedAnswerError
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from tests.blocks.openrouter.conftest import Account, Server, always, refused


async def test_a_management_key_tells_when_it_ends(account: Account) -> None:
    """The management key's own record says that it manages keys, and when it expires."""
    ends = account.now + timedelta(days=7)
    before = await account.client.about_itself()
    account.state.accounts[0].management_keys_expire[DEFAULT_MANAGEMENT_KEY] = ends

    after = await account.client.about_itself()

    assert (before.manages_keys, before.expires_at, after.expires_at) == (True, None, ends)


async def test_no_redirect_is_followed_with_the_credential() -> None:
    """A redirect is an error, so that no other host gets the management key."""
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
    """For a usable management key, the check returns one sentence."""
    async with always(200, {"data": []}).client() as client:
        assert await client.check() == "OpenRouter at https://openrouter.ai accepts the management key."


@pytest.mark.parametrize("key", ["", "with space", "line\nbreak", "ü"])
def test_a_refused_management_key_is_not_quoted(key: str) -> None:
    """A value that cannot be a key is refused without being quoted, because it may be another secret."""
    with pytest.raises(ValueError, match="management_key") as refused:
        OpenRouterCredentials(management_key=key + "-secret\n")

    assert "-secret" not in str(refused.value)
