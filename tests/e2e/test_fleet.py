"""A short trial of a fleet; `make fleet` runs the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT
from tests.e2e.conftest import needs_postgresql, needs_redis

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-fleet"), pytest.mark.timeout(1500)]
FLEET = [sys.executable, "-m", "sandbox.fleet"]


@pytest.mark.exhaustive
@needs_postgresql
@needs_redis
def test_rotations_on_a_fleet_whose_parts_are_killed_lose_nothing() -> None:
    """With one kill of each kind, no request fails, no key is left over, and each automation fires once."""
    kills = ["--kills", "worker,server,redis,services,postgres", "--down", "3"]
    command = [*FLEET, "--rotations", "20", "--over", "60", *kills]

    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=1400)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


def test_without_its_programs_it_names_the_packages_and_does_not_pass(tmp_path: Path) -> None:
    """Without a trial, the command must not look successful."""
    nowhere = (
        "import sandbox.redis, sandbox.postgres, runpy\nsandbox.redis.PROGRAM = sandbox.postgres.PROGRAMS = None\n"
    )
    command = [sys.executable, "-c", f"{nowhere}runpy.run_module('sandbox.fleet', run_name='__main__')"]
    env = {**os.environ, "HOME": str(tmp_path)}

    done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert "apt-get install postgresql redis-server" in done.stdout
