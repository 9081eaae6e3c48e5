"""A PostgreSQL server on loopback, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.stack import START_TIMEOUT_SECONDS, free_port

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
"""Where Debian keeps the programs of the newest version; `None` where they are not installed."""


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a server with an empty database, and stop it at the end.

    Args:
        folder: Where it keeps its data and its log.

    Yields:
        The address of the database, without a scheme.

    Raises:
        RuntimeError: It is not installed, or did not start; the message includes its log.
    """
    if PROGRAMS is None:
        raise RuntimeError("PostgreSQL is not installed: install Debian's package postgresql.")
    home, log, port = folder / "postgres", folder / "postgres.log", free_port()
    home.mkdir()
    as_user = _as_another_user(home) if os.geteuid() == 0 else []
    initdb = [str(PROGRAMS / "initdb"), "-D", str(home / "data"), "-U", "prefect", "-A", "trust", "-E", "UTF8"]
    server = [str(PROGRAMS / "postgres"), "-D", str(home / "data"), "-k", str(home), "-h", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        subprocess.run([*as_user, *initdb], stdout=output, stderr=output, cwd=home, check=True)  # noqa: S603 - ours
        started = subprocess.Popen([*as_user, *server], stdout=output, stderr=output, cwd=home)  # noqa: S603 - ours
        try:
            _wait(started, port, log)
            yield f"prefect@127.0.0.1:{port}/postgres"
        finally:
            started.terminate()
            started.wait()


def _as_another_user(home: Path) -> list[str]:
    # PostgreSQL refuses to run as root, and the other user has to reach its folder.
    shutil.chown(home, "nobody")
    for parent in home.parents[:-1]:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


def _wait(started: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ready = [str(PROGRAMS) + "/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while subprocess.run(ready, check=False).returncode:  # noqa: S603 - ours
        if started.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
