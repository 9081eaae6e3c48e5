"""The memory and the sockets that a process uses (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path


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
