"""A list is read completely, and reading an endless one is stopped."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from blocks.errors import UnexpectedAnswerError
from tests.blocks.openrouter.conftest import KEY, Account, Server, always


async def test_pages_may_be_smaller_than_asked_for() -> None:
    """A list ends at its total, and not at the first short page."""
    ids = [f"workspace-{number}" for number in range(5)]

    def page(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        shown = [{"id": workspace} for workspace in ids[offset : offset + 2]]
        return httpx.Response(200, json={"data": shown, "total_count": 5})

    async with Server(page).client() as client:
        assert [workspace async for workspace in client.list_workspaces()] == ids


async def test_a_list_that_counts_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose total keeps growing must not occupy a run forever."""
    monkeypatch.setattr("blocks.openrouter.api.MAX_PAGES", 3)
    server = always(200, {"data": [{"key_hash": "f01d", "guardrail_id": "one"}], "total_count": 9})

    async with server.client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not end"):
            await client.guardrail_of("another")

    assert len(server.seen) == 3


async def test_all_workspaces_are_listed(account: Account) -> None:
    """Workspaces beyond the first page are listed, too."""
    account.state.accounts[0].workspaces.extend(str(uuid4()) for _ in range(120))

    assert [one async for one in account.client.list_workspaces()] == account.state.accounts[0].workspaces


@pytest.mark.parametrize(("per_page", "offsets"), [(100, ["0", "100", "120"]), (50, ["0", "50", "100", "120"])])
async def test_the_list_is_walked_to_its_end(per_page: int, offsets: list[str]) -> None:
    """Pages of any length are read until an empty one, including disabled and expired keys."""
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
    """A server that always sends a full page must not occupy a run forever."""
    monkeypatch.setattr("blocks.openrouter.api.MAX_PAGES", 3)

    async with always(200, {"data": [KEY] * 100}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not end"):
            _ = [key async for key in client.list_keys()]
