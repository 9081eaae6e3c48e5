"""Connect terminal commands to the Prefect server in `PREFECT_API_URL`, and to no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from prefect.settings import PREFECT_API_URL

from blocks.errors import ConfigurationError, ServiceError

T = TypeVar("T")


def ask_prefect(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function against the Prefect server that `PREFECT_API_URL` names, and return its result.

    Raises:
        ConfigurationError: `PREFECT_API_URL` is not set. Prefect would start a temporary server, which has no
            rotations and keeps nothing.
        ServiceError: The server cannot be reached.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigurationError("Set PREFECT_API_URL to your Prefect server, such as http://127.0.0.1:4200/api.")
    try:
        return asyncio.run(work())
    except RuntimeError:
        # Prefect's client raises it if the server is unreachable.
        raise ServiceError(f"The Prefect server at {url} cannot be reached.") from None
