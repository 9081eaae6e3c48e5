"""The commands of the sandbox and of the benchmarks read nothing from the user's own Prefect configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT

pytestmark = pytest.mark.slow
COMMANDS = re.findall(r"python -m ((?:sandbox|bench)\S*)", (CHECKOUT / "Makefile").read_text())
PROGRAM = """
import importlib, os, sys

theirs, touched = os.path.expanduser("~/.prefect"), []
def note(event, args):
    if any(str(arg).startswith(theirs) for arg in args if isinstance(arg, (str, os.PathLike))):
        touched.append((event, *args))
sys.addaudithook(note)

importlib.import_module(sys.argv[1])
from sandbox.stack import Stack
stack = Stack()
with stack.as_client():
    import blocks, flows
    from prefect.settings import get_current_settings
    settings = get_current_settings()
    assert settings.home == stack.home / "prefect", settings.home
    assert settings.api.url == f"{stack.url}/api", settings.api.url
    assert settings.api.key is None
stack.stop()
assert not touched, touched
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home directory of a user whose profiles file breaks every program that reads it."""
    (tmp_path / ".prefect" / "profiles.toml").mkdir(parents=True)  # cannot be read as a file, not even by root
    return tmp_path


def run(program: str, *args: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as that user, with Prefect settings in the environment, too."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"HOME": str(home), "PREFECT_PROFILE": "production", "PREFECT_API_KEY": "pnu_production"}
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)


def test_every_command_is_tried() -> None:
    """The pattern must find every command in the Makefile, because only those are tested."""
    assert COMMANDS == [
        "sandbox.demo",
        "sandbox.up",
        "sandbox.fleet",
        "sandbox.fleet.soak",
        "bench.scale",
        "bench.soak",
        "bench",
    ]


@pytest.mark.parametrize("module", ["bench.__main__" if name == "bench" else name for name in COMMANDS])
def test_a_command_opens_no_file_of_the_users_prefect(module: str, home: Path) -> None:
    """It imports everything and configures a client for its own server without touching any file in `~/.prefect`."""
    done = run(PROGRAM, module, home=home)

    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (home / ".prefect").iterdir()] == ["profiles.toml"]


def test_prefect_alone_stops_at_such_profiles(home: Path) -> None:
    """Without isolation, even importing Prefect fails in this home directory, so the test above can fail."""
    done = run("import prefect.context", home=home)

    assert done.returncode != 0
    assert "IsADirectoryError" in done.stderr
