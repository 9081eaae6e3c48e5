"""The base of every part of the client of OpenRouter's management API: connection, management key, paging."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from operator import attrgetter
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, SecretStr

from blocks.errors import ConfigurationError, UnexpectedAnswerError
from blocks.http import JsonHttp
from blocks.openrouter.answers import Page, meaning_of, parse
from blocks.paging import contiguous_pages

M = TypeVar("M", bound=BaseModel)

PAGE_SIZE = 100
"""The maximum number of records on a page; the list of keys has no parameter `limit` for it."""


class ManagementApi:
    """OpenRouter's management API over one HTTP connection.

    Args:
        management_key: The management key.
        base_url: The API's base URL.
        block: The block that holds the management key, for messages; empty if it is not stored.
        transport: A transport for tests; real sockets by default.
        sleep: Sleeps for a number of seconds between attempts.
    """

    def __init__(
        self,
        management_key: SecretStr,
        base_url: str,
        *,
        block: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._management_key = management_key
        self._http = JsonHttp("OpenRouter", base_url, block=block, transport=transport, sleep=sleep, explain=meaning_of)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.__aexit__(None, None, None)

    async def _walk(
        self, model: type[M], path: str, doing: str, identity: str = "id", /, **params: str | int
    ) -> AsyncIterator[M]:
        """Iterate over a list; the list of keys states no total count."""

        async def read(offset: int) -> tuple[list[M], bool]:
            page = parse(Page, await self._manage("GET", path, doing, params={**params, "offset": offset}), doing)
            records = [parse(model, record, doing) for record in page.data]
            return records, page.total_count is not None and offset + len(records) >= page.total_count

        def endless(why: str) -> UnexpectedAnswerError:
            return UnexpectedAnswerError(f"OpenRouter's {why} while {doing}.")

        async for records in contiguous_pages(read, attrgetter(identity), PAGE_SIZE, endless):
            for record in records:
                yield record

    async def _manage(self, method: str, path: str, doing: str, **how: Any) -> dict[str, Any]:
        return await self._http.request(method, path, doing=doing, headers=bearer(self._management_key), **how)


def bearer(secret: SecretStr) -> dict[str, str]:
    """Return the header that carries a credential."""
    return {"Authorization": f"Bearer {secret.get_secret_value()}"}


def segment(value: str, name: str) -> str:
    """Return an id as one segment of a path; `ConfigurationError` if it cannot be one of OpenRouter's ids."""
    # Percent-encoding keeps dots, and servers tend to decode slashes before they route the path.
    if value in {"", ".", ".."} or not value.isprintable() or set("/\\") & set(value):
        raise ConfigurationError(f"The id of the {name} is not one that OpenRouter gives out.")
    return quote(value, safe="")
