"""A short soak in every test run; `make soak` runs the long one."""

from __future__ import annotations

import subprocess
import sys

from sandbox.stack import CHECKOUT
from tests.e2e.conftest import with_long_waits

pytestmark = with_long_waits


def test_rotations_under_faults_lose_no_request_and_leave_no_orphan() -> None:
    """Rotations with one failure in twenty calls end with ledger, destinations and OpenRouter in agreement."""
    command = [sys.executable, "-m", "bench.soak", "--runs", "12", "--names", "4"]

    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=800)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
