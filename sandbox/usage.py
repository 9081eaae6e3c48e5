"""The memory and the sockets that a process uses (proc(5)), and how such measurements grow."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Quarters(NamedTuple):
    """What is typical of the first and of the last quarter of some measurements."""

    first: float
    last: float

    @property
    def difference(self) -> float:
        """By how much the last one is larger."""
        return self.last - self.first

    @property
    def share(self) -> float:
        """By which share of the first one the last one is larger; 0 if there is nothing to compare."""
        return self.last / self.first - 1 if self.first else 0.0


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process in MB.

    Raises:
        OSError: It has ended.
    """
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_sockets(pid: int) -> int:
    """Return the number of open sockets of a process.

    Raises:
        OSError: It has ended.
    """
    links = (entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink())
    return sum(str(link).startswith("socket:") for link in links)


def growth(measured: Sequence[float]) -> Quarters:
    """Return the medians of the first and of the last quarter, which no single measurement can change much."""
    return _quarters(measured, statistics.median)


def lasting_growth(measured: Sequence[float]) -> Quarters:
    """Return the least of the first and of the last quarter: a leak is never given back, unlike what a peak needs."""
    return _quarters(measured, min)


def _quarters(measured: Sequence[float], typical: Callable[[Sequence[float]], float]) -> Quarters:
    quarter = max(1, len(measured) // 4)
    return Quarters(typical(measured[:quarter]), typical(measured[-quarter:]))
