"""Connect terminal commands to the Prefect server in `PREFECT_API_URL`, and to no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import httpx
from prefect.settings import PREFECT_API_URL

from blocks.errors import ConfigurationError, ServiceError
from blocks.threads import OwnThreads
from tasks.world.gate import one_watched_client

T = TypeVar("T")
REFUSED = frozenset({401, 403})
ANSWERED_WITHIN_SECONDS = 60.0
"""How long a command may take; Prefect's client waits for ever where a server says that it is in maintenance."""


def ask_prefect(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function against the Prefect server that `PREFECT_API_URL` names, and return its result.

    Args:
        work: The function; all its requests share one connection.

    Raises:
        ConfigurationError: `PREFECT_API_URL` is not set. Prefect would start a temporary server, which has no
            rotations and keeps nothing.
        ServiceError: The server cannot be reached, does not answer in time, refuses the password, or is no Prefect
            server of this version.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigurationError("Set PREFECT_API_URL to your Prefect server, such as http://127.0.0.1:4200/api.")

    async def asked() -> T:
        asyncio.get_running_loop().set_default_executor(OwnThreads())
        async with asyncio.timeout(ANSWERED_WITHIN_SECONDS), AsyncExitStack() as opened:
            try:
                await opened.enter_async_context(one_watched_client())
            except Exception as error:  # noqa: BLE001 - what Prefect's client raises depends on the answer
                raise _explained(error, _without_user(url)) from None
            return await work()

    try:
        return asyncio.run(asked())
    except TimeoutError:
        raise ServiceError(
            f"The Prefect server at {_without_user(url)} has not answered everything within "
            f"{ANSWERED_WITHIN_SECONDS:.0f} seconds: look at its load and its log, and ask again."
        ) from None


def _without_user(url: str) -> str:
    try:
        return str(httpx.URL(url).copy_with(userinfo=b""))
    except httpx.InvalidURL:
        return "PREFECT_API_URL"


def _explained(error: Exception, address: str) -> ServiceError:
    # Prefect's client hides most causes behind a RuntimeError.
    cause = error.__cause__ or error
    if isinstance(cause, httpx.HTTPStatusError):
        status = cause.response.status_code
        if status in REFUSED:
            return ServiceError(
                f"The Prefect server at {address} answered {status}: set PREFECT_API_AUTH_STRING to its user and "
                "password."
            )
        return ServiceError(
            f"The Prefect server at {address} answered {status}: check PREFECT_API_URL, which ends in /api, and the "
            "server's log."
        )
    if isinstance(cause, httpx.RequestError):
        return ServiceError(f"The Prefect server at {address} cannot be reached.")
    return ServiceError(
        f"The Prefect server at {address} did not answer as this version of Prefect does: check PREFECT_API_URL, and "
        "`prefect version`."
    )
