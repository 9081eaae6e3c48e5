"""Run a blocking call in a thread that can be abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Thread
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

THREAD_NAME = "key-rotation-call"
"""The name of these threads."""


class OwnThreads(ThreadPoolExecutor):
    """Runs each call in a daemon thread of its own, and joins none.

    As the default executor of an event loop, it keeps a name lookup that hangs from holding up the loop's end:
    `asyncio.run` joins the threads of any other executor then, and so does the interpreter when it exits.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start a call; the future cannot be cancelled, because its thread settles it."""
        answer: Future[T] = Future()
        answer.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited
                answer.set_exception(error)
            else:
                answer.set_result(result)

        Thread(target=run, name=THREAD_NAME, daemon=True).start()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the threads to end when their calls do."""


async def in_own_thread(call: Callable[..., T], *args: Any) -> T:
    """Run a blocking call in a thread of its own, and await its result.

    A call that never returns can be abandoned, by a timeout or a cancellation.

    Args:
        call: The call; it runs in a copy of the present context.
        *args: Its arguments.

    Returns:
        The call's result.

    Raises:
        BaseException: The call's exception.
    """
    return await asyncio.wrap_future(OwnThreads().submit(copy_context().run, call, *args))
