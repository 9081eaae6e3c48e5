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
    monkeypatch.setattr("blocks.paging.MAX_PAGES", 3)
    shown = [{"key_hash": key_hash, "guardrail_id": "one"} for key_hash in ("f01d", "f02d")]
    server = always(200, {"data": shown, "total_count": 9})

    async with server.client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not end"):
            await client.guardrail_of("another")

    assert len(server.seen) == 3


async def test_all_workspaces_are_listed(account: Account) -> None:
    """Workspaces beyond the first page are listed, too."""
    account.state.accounts[0].workspaces.extend(str(uuid4()) for _ in range(120))

    assert [one async for one in account.client.list_workspaces()] == account.state.accounts[0].workspaces


@pytest.mark.parametrize(("per_page", "offsets"), [(100, ["0", "99", "119"]), (50, ["0", "49", "98", "119"])])
async def test_the_list_is_walked_to_its_end(per_page: int, offsets: list[str]) -> None:
    """Pages of any length are read until nothing follows, including disabled and expired keys."""
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
    monkeypatch.setattr("blocks.paging.MAX_PAGES", 3)

    async with always(200, {"data": [KEY] * 100}).client() as client:
        with pytest.raises(UnexpectedAnswerError, match="did not end"):
            _ = [key async for key in client.list_keys()]


@pytest.mark.parametrize("deleted", [1, 99, 150])
@pytest.mark.parametrize("created", [0, 1, 150])
async def test_a_record_is_not_skipped_when_others_come_and_go_between_two_pages(deleted: int, created: int) -> None:
    """Deleted keys move the later ones up, across the edge of a page that was read before."""
    keys = [{**KEY, "hash": f"f{number}"} for number in range(420)]
    before, staying = [*keys], keys[deleted:]

    def page(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        shown = keys[offset : offset + 100]
        if offset >= 150:
            # From now on: the first keys are gone, and newer ones stand before all others.
            keys[:] = [*({**KEY, "hash": f"new{number}"} for number in range(created)), *staying]
        return httpx.Response(200, json={"data": shown})

    async with Server(page).client() as client:
        seen = [key.hash async for key in client.list_keys()]

    assert {key["hash"] for key in staying} <= set(seen) <= {key["hash"] for key in [*before, *keys]}
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("label", ["CI / staging", "", "x" * 201, "caf\u00e9\u200b", "sk-or-v1-" + "0" * 64, "..."])
async def test_a_key_with_any_label_is_listed(label: str) -> None:
    """A person may have named a key of nobody's rotation so; what is shown of it holds no secret."""
    page = {"data": [{**KEY, "label": label}]}

    async with always(200, page).client() as client:
        (key,) = [key async for key in client.list_keys()]

    assert key.label
    assert len(key.label) <= 200
    assert key.label.isprintable()
    assert "0" * 64 not in key.label
