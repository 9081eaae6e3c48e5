"""Prefect tasks and flows that store nothing of what they handle."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from blocks.errors import KeyRotationError

P = ParamSpec("P")
R = TypeVar("R")


def secret_task(
    name: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make a step a task that stores nothing of what it handles, whatever the server's default is.

    It persists no result and caches nothing. Prefect stores the text of whatever a task raises, so an error that is not
    ours, whose text may quote a key, is told by its class and its place only.

    Retries are left out on purpose: the clients retry what is harmless to repeat, and the ledger makes a Retry of the
    whole run safe.
    """

    def as_task(step: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @wraps(step)
        async def reported(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return await step(*args, **kwargs)
            except KeyRotationError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a library raises
                raise unexpected(error) from None

        return task(name=name, persist_result=False, cache_policy=NO_CACHE, log_prints=False, retries=0)(reported)

    return as_task


def secret_flow(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, Coroutine[Any, Any, R]]]:
    """Make a function a flow that persists no result, whatever the server's default is.

    Prefect does not validate the parameters, because its error would quote them: each flow parses its own, and refuses
    what is wrong in one sentence.
    """
    return flow(name=name, persist_result=False, validate_parameters=False, log_prints=False)


def unexpected(error: Exception) -> KeyRotationError:
    """Turn an error that nobody foresaw into one whose text is safe to store; the log says where it was raised.

    Args:
        error: The error. Its own text may quote a secret.
    """
    get_run_logger().error(
        "Unexpected %s at:\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    )
    return KeyRotationError(f"An unexpected {type(error).__name__} was raised; the log says where.")
