"""The seed alone determines a simulation, so that a failure found on one machine can be repeated on another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_seed_tells_the_same_stories_in_every_process() -> None:
    """Neither the order of sets of strings nor the load of the machine changes the histories."""
    # When
    first, second = (_simulated(hash_seed) for hash_seed in ("1", "2"))

    # Then
    assert "digest of the stories" in first
    assert first == second


def _simulated(hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--steps", "1000", "--seed", "3"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in told.splitlines() if "seconds" not in line)
