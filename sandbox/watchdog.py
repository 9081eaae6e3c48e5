"""End the child processes of a process that has died, even by SIGKILL.

A killed process cleans nothing up, and what it started may have left its process group: each run of a worker has a
session of its own. So a second process, this file run as a script, reads a pipe whose other end only the first process
holds. When the pipe closes, it kills every process with the first one's mark in its environment, which all descendants
inherit.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

MARK = "KEY_ROTATION_SANDBOX"
"""The environment variable that marks what a process has started; its value is that process's directory."""
PROC = Path("/proc")
PAUSE_SECONDS = 0.05


@cache
def start(directory: Path) -> subprocess.Popen[bytes]:
    """Mark everything that this process starts from now on, and start its watchdog.

    Args:
        directory: This process's directory of temporary files, which the watchdog removes in the end.

    Returns:
        The watchdog; while the process holds it, it waits.
    """
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    os.environ[MARK] = str(directory)
    # Isolated and by its path: as a module of its package it would mark and isolate a process of its own. In a session
    # of its own, so that neither Ctrl-C nor a closed terminal reaches it.
    command = [sys.executable, "-IS", __file__, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=unmarked, cwd="/", start_new_session=True)  # noqa: S603


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the id and the environment of each process that this user may inspect."""
    if not PROC.exists():  # macOS
        listed = subprocess.run(["/bin/ps", "-axwwE", "-o", "pid=,command="], capture_output=True, check=True)
        for line in listed.stdout.splitlines():
            pid, *words = line.split()
            yield int(pid), words
    for process in PROC.glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:  # another user's, or ended in the meantime
            continue
        yield int(process.name), environment.split(b"\0")


def kill_marked(directory: str) -> None:
    """Kill every process that carries a mark, until none is left: one that is found may just be starting another."""
    mark = f"{MARK}={directory}".encode()
    while marked := [pid for pid, environment in environments() if mark in environment]:
        for pid in marked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def main(directory: str) -> None:
    """Wait until the process that started this one is gone, and remove what it left."""
    sys.stdin.buffer.read()
    kill_marked(directory)
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1])
