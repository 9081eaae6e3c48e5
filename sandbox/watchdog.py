"""Kill the descendants of a process that has died, even by SIGKILL.

A killed process cannot clean up, and its descendants may have left its process group: a worker starts each run in a
session of its own. So a second process, which runs this file as a script, reads from a pipe whose other end only the
first process holds. When the pipe closes, it kills every process whose environment contains the first one's mark,
which all descendants inherit.
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
"""The environment variable that marks the descendants of a process; its value is that process's directory."""
PROC = Path("/proc")
PAUSE_SECONDS = 0.05


@cache
def start(directory: Path) -> subprocess.Popen[bytes]:
    """Mark all future children of this process, and start its watchdog.

    Args:
        directory: This process's temporary directory, which the watchdog finally removes.

    Returns:
        The watchdog, which waits as long as this process keeps the pipe open.
    """
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    os.environ[MARK] = str(directory)
    # Run by its path in isolated mode: importing the package would isolate and mark this process, too. In a session of
    # its own, so that neither Ctrl-C nor a closed terminal reaches it.
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
        except OSError:  # another user's process, or one that has exited meanwhile
            continue
        yield int(process.name), environment.split(b"\0")


def kill_marked(directory: str) -> None:
    """Kill every process with a mark, until none is left: a process may start another one just before it is killed."""
    mark = f"{MARK}={directory}".encode()
    while marked := [pid for pid, environment in environments() if mark in environment]:
        for pid in marked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def main(directory: str) -> None:
    """Wait until the process that started this one is gone, and clean up after it."""
    sys.stdin.buffer.read()
    kill_marked(directory)
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1])
