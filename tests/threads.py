"""Calls that hang, and event loops that must end nevertheless."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

ENDS_WITHIN = 60.0


class Hanging:
    """A call that returns only when it is released, and the daemon thread in which it hangs."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, *_: object, **__: object) -> bytes:
        """Hang until it is released."""
        self.thread = threading.current_thread()
        self.go_on.wait()
        return b""

    def __enter__(self) -> Self:
        """Let the call hang until the end of the context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the call."""
        self.go_on.set()


def ends_while(hanging: Hanging, make: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Return whether a coroutine's event loop ends while a call hangs in a thread that nothing joins."""
    loop = threading.Thread(target=lambda: asyncio.run(make()), daemon=True)
    loop.start()
    loop.join(ENDS_WITHIN)
    thread = hanging.thread
    return not loop.is_alive() and thread is not None and thread.is_alive() and thread.daemon
