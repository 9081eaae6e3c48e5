"""The event loop of all runs, in which no time passes but that for which all of them wait.

A deadline by the clock on the wall would make a history depend on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import selectors


class _NothingToWaitFor(selectors.SelectSelector):
    """No run of a simulation has a file or a socket: where all tasks wait, the next deadline has come."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass, and find nothing."""
        if timeout is None:
            raise RuntimeError("All runs wait for something that never comes.")
        self.now += timeout
        return []


class LoopWithoutWaiting(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when every task waits for it."""

    def __init__(self) -> None:
        self._clock = _NothingToWaitFor()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the seconds for which all tasks have waited."""
        return self._clock.now
