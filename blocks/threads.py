"""Run a blocking call in a thread that can be abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_NAME = "key-rotation-call"
"""The name of these threads."""


async def in_own_thread(call: Callable[..., T], *args: Any) -> T:
    """Run a blocking call in a thread of its own, and await its result.

    A call that never returns can be abandoned, by a timeout or a cancellation: `asyncio.run` joins the threads of
    `asyncio.to_thread` when it ends, and so does the interpreter when it exits, but neither joins this daemon thread.

    Args:
        call: The call; it runs in a copy of the present context.
        *args: Its arguments.

    Returns:
        The call's result.

    Raises:
        BaseException: The call's exception.
    """
    answer: Future[T] = Future()
    # Otherwise abandoning the call would cancel the future that its thread has yet to settle.
    answer.set_running_or_notify_cancel()
    context = copy_context()

    def run() -> None:
        try:
            result = context.run(call, *args)
        except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited
            answer.set_exception(error)
        else:
            answer.set_result(result)

    Thread(target=run, name=THREAD_NAME, daemon=True).start()
    return await asyncio.wrap_future(answer)
