"""Calls that hang, and event loops that have to end nevertheless."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

ENDS_WITHIN = 60.0


class Hanging:
    """A call that does not return before it is told to, and the daemon thread that it hangs in."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, *_: object, **__: object) -> bytes:
        """Hang."""
        self.thread = threading.current_thread()
        self.go_on.wait()
        return b""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it return."""
        self.go_on.set()


def ends_while(hanging: Hanging, make: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Run a coroutine in a loop of its own: does that end while the call hangs in a thread that nobody joins?"""
    loop = threading.Thread(target=lambda: asyncio.run(make()), daemon=True)
    loop.start()
    loop.join(ENDS_WITHIN)
    thread = hanging.thread
    return not loop.is_alive() and thread is not None and thread.is_alive() and thread.daemon
