"""What the commands of the terminal share: they ask the Prefect server that PREFECT_API_URL names, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from prefect.settings import PREFECT_API_URL

from blocks.errors import ConfigurationError, ServiceError

T = TypeVar("T")


def ask_prefect(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do something with the Prefect server that the environment names.

    Args:
        work: What to do.

    Returns:
        What it returns.

    Raises:
        ConfigurationError: `PREFECT_API_URL` is not set. Prefect would start a server of its own, which knows no
            rotation, and keeps nothing that is made there.
        ServiceError: The server cannot be reached.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigurationError("Set PREFECT_API_URL to your Prefect server, such as http://127.0.0.1:4200/api.")
    try:
        return asyncio.run(work())
    except RuntimeError:
        # What Prefect's client makes of a server that it cannot reach.
        raise ServiceError(f"The Prefect server at {url} cannot be reached.") from None
