"""Calls that block in a thread, and event loops that must end anyway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

ENDS_WITHIN = 60.0


class Hanging:
    """A callable that blocks until it is released, and the thread that it blocks."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, *_: object, **__: object) -> bytes:
        """Hang until it is released."""
        self.thread = threading.current_thread()
        self.go_on.wait()
        return b""

    def __enter__(self) -> Self:
        """Enter a context at whose end the call is released."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the call."""
        self.go_on.set()


def ends_while(hanging: Hanging, make: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Return whether an event loop ends although a call still blocks a daemon thread, which nothing joins."""
    loop = threading.Thread(target=lambda: asyncio.run(make()), daemon=True)
    loop.start()
    loop.join(ENDS_WITHIN)
    thread = hanging.thread
    return not loop.is_alive() and thread is not None and thread.is_alive() and thread.daemon
