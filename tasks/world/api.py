"""Prefect's API: translated errors, and lists read page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated, Any, Literal

import httpx
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from pydantic import AfterValidator, TypeAdapter

from blocks.errors import ServiceError
from blocks.http import retry_after_seconds
from blocks.paging import contiguous_pages

OWN_TAG = "key-rotation"
"""The tag of everything that this package makes in Prefect, and the prefix of the names of its variables and limits."""
PAGE_SIZE = 200
"""The size of a page; Prefect's API returns no more."""
FORBIDDEN = 403
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which a repetition may succeed."""
Json = dict[str, Any]


def _with_id(entry: Json) -> Json:
    if not isinstance(entry.get("id"), str):
        raise TypeError("an entry has no id")
    return entry


ENTRIES = TypeAdapter(list[Annotated[Json, AfterValidator(_with_id)]])
Route = Literal["/variables/filter", "/deployments/filter", "/flow_runs/filter", "/v2/concurrency_limits/filter"]


@contextmanager
def api_errors(doing: str) -> Iterator[None]:
    """Translate an error of Prefect's API into one sentence; its own text may quote the request."""
    try:
        yield
    except (ObjectNotFound, ObjectAlreadyExists):
        raise
    # The builtin errors come from answers that are not JSON, or not as documented.
    except (
        httpx.HTTPError, PrefectException, TimeoutError, ValueError, TypeError, AttributeError, LookupError,
        RecursionError,
    ) as error:  # fmt: skip
        raise ServiceError(
            f"Prefect's API failed while {doing} ({type(error).__name__}).",
            outcome_unknown=True,
            retryable=_passes_by_itself(error),
            retry_after=_retry_after(error),
        ) from None


@contextmanager
def as_not_found() -> Iterator[None]:
    """Raise `ObjectNotFound` for every answer 404; for some requests, Prefect's client raises a plain status error."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        raise ObjectNotFound(http_exc=error) from None


def _passes_by_itself(error: Exception) -> bool:
    if not isinstance(error, httpx.HTTPStatusError):
        # For example, a proxy's HTML page instead of an answer; it may be gone at the next attempt.
        return True
    # After this refusal, Prefect's client fetches a new CSRF token.
    stale_token = error.response.status_code == FORBIDDEN and "CSRF" in error.response.text
    return stale_token or error.response.status_code in PASSING


def _retry_after(error: Exception) -> float | None:
    if not isinstance(error, httpx.HTTPStatusError):
        return None
    return retry_after_seconds(error.response.headers.get("Retry-After"), datetime.now(UTC))


async def pages(route: Route, body: Json, doing: str, most: int | None = None) -> AsyncIterator[list[Json]]:
    """Yield the entries of a list in Prefect's API, page by page, each entry once.

    Args:
        route: The list.
        body: The filter and the order.
        doing: The purpose, for the error message.
        most: How many pages to read; all by default.

    Yields:
        The entries of each page, as the API returns them.

    Raises:
        ServiceError: Prefect's API failed.
    """
    client, _ = get_or_create_client()

    async def read(offset: int) -> tuple[list[Json], bool]:
        with api_errors(doing):
            wanted = {**body, "limit": PAGE_SIZE, "offset": offset}
            page = ENTRIES.validate_python((await client.request("POST", route, json=wanted)).json())
        return page, len(page) < PAGE_SIZE

    def endless(why: str) -> ServiceError:
        return ServiceError(f"Prefect's {why} while {doing}.")

    found = 0
    async for page in contiguous_pages(read, itemgetter("id"), PAGE_SIZE, endless):
        yield page
        found += 1
        if found == most:
            return


def parse_time(text: str) -> datetime:
    """Parse a time of Prefect's API: ISO 8601 with an offset."""
    return datetime.fromisoformat(text).astimezone(UTC)
