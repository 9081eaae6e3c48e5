"""Prefect's background services in a process that ends as soon as one of them does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT, free_port

ENDED_WITHIN_SECONDS = 100
STARTED = "Starting action message handler"


def environment(home: Path) -> dict[str, str]:
    """The environment of services with a database of their own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "INFO",
        "PYTHONPATH": str(CHECKOUT),
    }


@pytest.mark.slow
def test_services_that_cannot_start_end_their_process(tmp_path: Path) -> None:
    """While the database is down they cannot start; unless the process ends, nothing would ever start them again."""
    nowhere = f"postgresql+asyncpg://prefect@127.0.0.1:{free_port()}/prefect"
    env = environment(tmp_path) | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": nowhere}

    done = subprocess.run(
        [sys.executable, "-m", "flows.services"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=ENDED_WITHIN_SECONDS,
    )

    assert done.returncode == 1
    assert "has ended: ConnectionRefusedError. This process ends, to be started again." in done.stderr


@pytest.mark.slow
def test_services_store_what_they_have_when_they_are_stopped(tmp_path: Path) -> None:
    """Docker, systemd and Kubernetes send SIGTERM; Python itself would end at once, with events in memory."""
    env = environment(tmp_path)
    upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(upgrade, env=env, cwd=tmp_path, check=True, capture_output=True)
    services = subprocess.Popen(
        [sys.executable, "-m", "flows.services"],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert services.stdout is not None
    next(line for line in services.stdout if STARTED in line)

    services.terminate()
    said, _ = services.communicate(timeout=ENDED_WITHIN_SECONDS)

    assert services.returncode == 0, said
    assert "Received cancellation, stopping services" in said
