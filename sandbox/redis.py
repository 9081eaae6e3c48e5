"""A Redis server on loopback, if it is installed."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from sandbox import watchdog
from sandbox.isolation import DIRECTORY
from sandbox.stack import Process, free_port, wait_until

PROGRAM = shutil.which("redis-server")
"""The path of the program; `None` if it is not installed."""
TIMEOUT_SECONDS = 1.0


class Redis:
    """A Redis server that persists every change, and can be killed and restarted.

    Args:
        folder: The folder for its data and its log.

    Raises:
        RuntimeError: Redis is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if PROGRAM is None:
            raise RuntimeError("Redis is not installed: install Debian's package redis-server.")
        watchdog.start(DIRECTORY)
        self._home, self._log, self._port = folder / "redis", folder / "redis.log", free_port()
        self._program = PROGRAM

    def address(self, database: int) -> str:
        """Return the address of one of its databases."""
        return f"redis://127.0.0.1:{self._port}/{database}"

    def start(self) -> Process:
        """Start the server with its persisted data.

        Returns:
            Its process.

        Raises:
            RuntimeError: It did not start; the message includes the end of its log.
        """
        self._home.mkdir(exist_ok=True)
        where = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._home)]
        command = [self._program, *where, "--appendonly", "yes", "--save", ""]
        command += [
            "--set-proc-title",
            "no",
        ]  # its title would replace its environment, and with it the watchdog's mark
        process = Process(command, {**os.environ, "HOME": str(self._home)}, self._log)
        wait_until(self._is_ready, process, "Redis")
        return process

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), TIMEOUT_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
