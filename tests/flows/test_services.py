"""Prefect's background services in a process that ends as soon as one of them does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT, free_port

ENDED_WITHIN_SECONDS = 100


@pytest.mark.slow
def test_services_that_cannot_start_end_their_process(tmp_path: Path) -> None:
    """While the database is down they cannot start; unless the process ends, nothing would ever start them again."""
    nowhere = f"postgresql+asyncpg://prefect@127.0.0.1:{free_port()}/prefect"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": nowhere,
        "PYTHONPATH": str(CHECKOUT),
    }

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
