"""Prefect tasks and flows that store nothing of what they process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from blocks.errors import KeyRotationError

NO_STORAGE = Path(os.devnull)
"""A result storage in which nothing can be stored."""
P = ParamSpec("P")
R = TypeVar("R")


def secret_task(
    name: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Turn a step into a task that stores nothing of what it processes, whatever the server's defaults are.

    It persists no result and caches nothing. Prefect stores the text of every exception, which may quote a key, so an
    unexpected one is reported by its class and location only.

    It has no retries on purpose: the clients retry what is safe to repeat, and the ledger makes a Retry of the whole
    run safe.
    """

    def as_task(step: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @wraps(step)
        async def reported(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return await step(*args, **kwargs)
            except KeyRotationError:
                raise
            except Exception as error:  # noqa: BLE001 - a library may raise anything
                raise unexpected(error) from None

        return task(name=name, persist_result=False, cache_policy=NO_CACHE, log_prints=False, retries=0)(reported)

    return as_task


def secret_flow(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, Coroutine[Any, Any, R]]]:
    """Turn a function into a flow that persists no result, whatever the server's defaults are.

    Prefect does not validate the parameters, because its error would quote them: each flow parses its own, and refuses
    invalid ones in one sentence.

    A result storage of its own spares each run the request for the server's default one, and its failures.
    """
    return flow(name=name, persist_result=False, result_storage=NO_STORAGE, validate_parameters=False, log_prints=False)


def unexpected(error: Exception) -> KeyRotationError:
    """Turn an unexpected error into one whose text is safe to store; its location is logged.

    Args:
        error: The error, whose text may quote a secret.
    """
    get_run_logger().error(
        "Unexpected %s at:\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    )
    return KeyRotationError(f"An unexpected {type(error).__name__} was raised; the log says where.")
