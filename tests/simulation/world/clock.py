"""The event loop of all runs, whose clock advances only when all tasks wait.

With timeouts by the wall clock, a history would depend on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import selectors


class _NothingToWaitFor(selectors.SelectSelector):
    """A selector without files and sockets: if all tasks wait, the next timeout is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Advance the clock, and return nothing."""
        if timeout is None:
            raise RuntimeError("All runs wait for something that never comes.")
        self.now += timeout
        return []


class LoopWithoutWaiting(asyncio.SelectorEventLoop):
    """An event loop whose clock advances only when every task waits for it."""

    def __init__(self) -> None:
        self._clock = _NothingToWaitFor()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the seconds for which all tasks have waited."""
        return self._clock.now
