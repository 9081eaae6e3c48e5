"""How a step becomes a Prefect task without ever storing what it handles."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

P = ParamSpec("P")
R = TypeVar("R")


def secret_task(
    name: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make a step a task that persists no result, whatever the server's default is, and caches nothing.

    Retries are left out on purpose: the clients retry what is harmless to repeat, and the ledger makes a Retry of the
    whole run safe.

    Args:
        name: The task's name in the dashboard.

    Returns:
        A decorator.
    """
    return task(name=name, persist_result=False, cache_policy=NO_CACHE, log_prints=False, retries=0)
