"""A PostgreSQL server on loopback, if it is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox import watchdog
from sandbox.isolation import DIRECTORY
from sandbox.stack import Process, free_port, wait_until

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
"""Debian's directory with the programs of the newest version; `None` if it is not installed."""


class Postgres:
    """A PostgreSQL server with its own database, which can be killed and restarted.

    Args:
        folder: The folder for its data and its log.

    Raises:
        RuntimeError: PostgreSQL is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if PROGRAMS is None:
            raise RuntimeError("PostgreSQL is not installed: install Debian's package postgresql.")
        watchdog.start(DIRECTORY)
        self._home, self._log = folder / "postgres", folder / "postgres.log"
        self._port = free_port()
        self._programs = PROGRAMS
        self._as_user = list[str]()

    @property
    def address(self) -> str:
        """The address of the database, without a scheme."""
        return f"prefect@127.0.0.1:{self._port}/postgres"

    def start(self) -> Process:
        """Start the server, and create its database if there is none.

        Returns:
            Its process.

        Raises:
            RuntimeError: It did not start; the message includes the end of its log.
        """
        if not self._home.exists():
            self._make()
        data, port = str(self._home / "data"), str(self._port)
        server = [str(self._programs / "postgres"), "-D", data, "-k", str(self._home), "-h", "127.0.0.1", "-p", port]
        # SIGINT disconnects the clients; SIGTERM would wait for them.
        env = {**os.environ, "HOME": str(self._home)}
        process = Process([*self._as_user, *server], env, self._log, stop_signal=signal.SIGINT)
        wait_until(self._is_ready, process, "PostgreSQL")
        return process

    def _make(self) -> None:
        self._home.mkdir()
        self._as_user = _as_another_user(self._home) if os.geteuid() == 0 else []
        initdb = [str(self._programs / "initdb"), "-D", str(self._home / "data"), "-U", "prefect", "-A", "trust"]
        with self._log.open("wb") as output:
            subprocess.run(  # noqa: S603 - ours
                [*self._as_user, *initdb, "-E", "UTF8"], stdout=output, stderr=output, cwd=self._home, check=True
            )

    def _is_ready(self) -> bool:
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(ready, check=False).returncode == 0  # noqa: S603 - ours


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a server with an empty database.

    Args:
        folder: The folder for its data and its log.

    Yields:
        The address of the database, without a scheme.

    Raises:
        RuntimeError: It is not installed, or did not start; the message includes its log.
    """
    server = Postgres(folder)
    process = server.start()
    try:
        yield server.address
    finally:
        process.stop()


def stop_immediately(process: Process) -> None:
    """Stop a server like `pg_ctl stop -m immediate`: at once, without a checkpoint."""
    process.popen.send_signal(signal.SIGQUIT)
    process.popen.wait()


def settings_of(address: str) -> dict[str, str]:
    """Return the settings of a Prefect server with this database, given its address without a scheme."""
    return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}"}


def _as_another_user(home: Path) -> list[str]:
    # PostgreSQL refuses to run as root, and the other user must be able to reach its folder.
    shutil.chown(home, "nobody")
    for parent in home.parents[:-1]:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
