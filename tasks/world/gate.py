"""Writes to Prefect's API: each request is sent once, with a timeout, and never resent by Prefect's client.

Prefect's client resends a request after 408, 429, 502, 503 or a lost connection, for a minute or for as long as
`Retry-After` asks (`PrefectHttpxAsyncClient.send` in Prefect 3.8.8). By the time a resent request takes effect, what
was checked before the first one may no longer hold. So the writer decides about each attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.utilities import get_or_create_client
from prefect.context import AsyncClientContext, SettingsContext, get_settings_context
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from blocks.errors import ServiceError
from blocks.http import retry_after_seconds
from tasks.world.api import PASSING, api_errors

DEADLINE_SECONDS = 15.0
"""The timeout of a request; far below the lease of a slot."""
ATTEMPTS = 9
"""How often an idempotent write is attempted; no attempt starts later than `DEADLINE_SECONDS` after the first."""
FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 5.0
QUICK_WAITS_SECONDS = (0.05, 0.1, 0.2)
"""The waits after the first answers 503 to any other request, before Prefect's own, which begin with two seconds."""
_is_sent_once: ContextVar[bool] = ContextVar("is_sent_once", default=False)


@asynccontextmanager
async def sent_once(doing: str) -> AsyncIterator[PrefectClient]:
    """Yield Prefect's client in a mode that sends each request once, with a timeout.

    Raises:
        ServiceError: Prefect's API failed; `retryable` if the same request may succeed later.
    """
    client = watched_client()
    token = _is_sent_once.set(True)
    try:
        with api_errors(doing), _without_repetition():
            async with asyncio.timeout(DEADLINE_SECONDS):
                yield client
    finally:
        _is_sent_once.reset(token)


def watched_client() -> PrefectClient:
    """Return the client of this run, with its answers watched."""
    client, _ = get_or_create_client()
    watch_answers(client)
    return client


def watch_answers(client: PrefectClient) -> None:
    """Make a client send requests again soon after a refusal, and those of `sent_once` not at all.

    However long a server or proxy asks it to wait, it asks again after `LONGEST_WAIT_SECONDS`: meanwhile a worker would
    find no emergency, and a run would hold its place.

    On SQLite, Prefect's server answers 503 to a transaction that reads and then writes, where another one has written
    in between (PrefectHQ/prefect issue 18934, pull request 9632). A moment later it succeeds.
    """
    hooks = client._client.event_hooks["response"]  # noqa: SLF001 - Prefect's client has no public accessor
    if _answered not in hooks:
        hooks.append(_answered)


@asynccontextmanager
async def one_watched_client() -> AsyncIterator[None]:
    """Send all requests to Prefect through one client, which is watched from the first request on."""
    context = AsyncClientContext()
    watch_answers(context.client)
    async with context:
        yield


async def _answered(response: httpx.Response) -> None:
    if _is_sent_once.get():
        # Even without a retry left, Prefect's client sleeps for two seconds, or as long as Retry-After asks, before it
        # returns such an answer.
        if response.status_code in PASSING:
            response.raise_for_status()
    elif asked := response.headers.get("Retry-After"):
        # Prefect's client would sleep for as long as it is asked to, be it an hour.
        seconds = retry_after_seconds(asked, datetime.now(UTC))
        response.headers["Retry-After"] = str(
            min(LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS if seconds is None else seconds)
        )
    elif response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        known = response.request.extensions
        known["refusals"] = refusals = known.get("refusals", 0) + 1
        if refusals <= len(QUICK_WAITS_SECONDS):
            response.headers["Retry-After"] = str(QUICK_WAITS_SECONDS[refusals - 1])


def _without_repetition() -> SettingsContext:
    # Prefect's `temporary_settings` would read all settings again, for 20 ms of CPU time.
    now = get_settings_context()
    client = now.settings.client.model_copy(update={"max_retries": 0})
    return SettingsContext(profile=now.profile, settings=now.settings.model_copy(update={"client": client}))


async def persistently(
    attempt: Callable[[], Awaitable[None]], *, attempts: int | None = None, within: float | None = None
) -> None:
    """Make an idempotent write, and repeat it while it fails in a way that may pass.

    Args:
        attempt: The write; a repetition accepts what an earlier attempt has done.
        attempts: The maximum number of attempts; `ATTEMPTS` by default.
        within: How many seconds after the first attempt the last one may start; `DEADLINE_SECONDS` by default.

    Raises:
        ServiceError: It did not succeed in time, or cannot succeed.
    """
    retrying = AsyncRetrying(
        stop=stop_after_attempt(attempts or ATTEMPTS)
        | stop_before_delay(DEADLINE_SECONDS if within is None else within),
        wait=_wait,
        retry=retry_if_exception(_may_retry),
        reraise=True,
    )
    await retrying(attempt)


def _may_retry(error: BaseException) -> bool:
    return isinstance(error, ServiceError) and error.retryable and (error.retry_after or 0.0) <= LONGEST_WAIT_SECONDS


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServiceError) else None
    # Jitter, so that runs that failed together do not retry together.
    own = wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)(state)
    return max(own, asked or 0.0)
