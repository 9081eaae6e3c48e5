"""Run a blocking call in a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_NAME = "key-rotation-call"
"""The name of every such thread."""


async def in_own_thread(call: Callable[..., T], *args: Any) -> T:
    """Make a blocking call, and let the event loop go on meanwhile.

    A call that never returns can be given up, with a deadline or by cancellation: `asyncio.run` joins the threads of
    `asyncio.to_thread` when it ends, and the interpreter when it exits, but neither joins this one.

    Args:
        call: The call. It sees a copy of the present context.
        *args: Its arguments.

    Returns:
        What the call has returned.

    Raises:
        BaseException: What the call has raised.
    """
    answer: Future[T] = Future()
    # Without this, giving the call up would cancel the future that its thread still has to settle.
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
