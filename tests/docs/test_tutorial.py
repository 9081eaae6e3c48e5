"""Run the tutorial from the first command to the last."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT
from tests.docs import pages
from tests.e2e.conftest import with_long_waits

pytestmark = with_long_waits
START, *COMMANDS = pages.read("tutorial/first-rotation.md")
START_SECONDS = 120
DASHBOARD = re.compile(r"Dashboard: (http://\S+)/v2 ")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Path]:
    """Run the command behind `make up`, and yield the file with its output."""
    printed = tmp_path / "up.log"
    with printed.open("wb") as log:
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen([sys.executable, "-m", "sandbox.up"], stdout=log, stderr=log, env=env)
        try:
            deadline = time.monotonic() + START_SECONDS
            while "rotate/example" not in printed.read_text():
                assert process.poll() is None, printed.read_text()
                assert time.monotonic() < deadline, printed.read_text()
                time.sleep(0.2)
            yield printed
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_the_tutorial_works(up: Path, tmp_path: Path) -> None:
    """Each command succeeds, and prints what the page promises."""
    address = DASHBOARD.search(up.read_text())
    assert address is not None
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    here = {"http://127.0.0.1:4200": address[1], ". .venv/bin/activate": ""}

    promises = pages.follow(COMMANDS, tmp_path, here, {**env, "PREFECT_HOME": str(tmp_path / "prefect")})

    [after_start, *after_commands] = [block.text for block in COMMANDS if block.language == "text"]
    assert START.text == "make up\n"
    assert pages.prints(after_start.replace("http://127.0.0.1:4200", address[1]), up.read_text())
    assert [promised for promised, _ in promises] == after_commands
    for text, printed in promises:
        promised = text.replace("http://127.0.0.1:4200", address[1])
        assert pages.prints(promised, printed), f"promised:\n{promised}\nprinted:\n{printed}"
