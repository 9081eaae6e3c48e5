"""The package as a worker has it: a built wheel in an environment of its own, away from the checkout."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from uuid import UUID

from packaging.requirements import Requirement
from prefect import State, get_client

from sandbox.stack import CHECKOUT, WORKER_TYPE, Process, Stack

REQUIREMENTS = CHECKOUT / "requirements.txt"
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "site")
RUN_SECONDS = 300.0
"""The timeout of one command; many servers and workers may share two cores with it."""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command, and return its output."""
    done = subprocess.run(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def copy_of_source(to: Path) -> Path:
    """Copy the source of a wheel: a build leaves files beside it, and packs those of an earlier build."""
    return Path(shutil.copytree(CHECKOUT, to, ignore=NOT_SOURCE))


def build(source: Path, into: Path) -> Path:
    """Build the wheel, without using an index."""
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--wheel-dir", into, source,
    )  # fmt: skip
    [wheel] = into.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment with a wheel of this package, the pinned requirements, and nothing else.

    The requirements are linked from the test environment, which has the same pins, instead of being downloaded again.

    Args:
        home: Where it is made; commands run in an empty folder in it.
        wheel: The wheel.
    """

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home = home
        venv.create(home / "venv", symlinks=True)
        paths = sysconfig.get_paths("venv", {"base": str(home / "venv"), "platbase": str(home / "venv")})
        self.packages = Path(paths["purelib"])
        self.python = Path(paths["scripts"]) / "python"
        self.elsewhere = home / "elsewhere"
        self.elsewhere.mkdir()
        for requirement in pinned():
            link(requirement, self.packages)
        self._pip("install", "--quiet", "--no-deps", "--no-index", str(wheel))
        self._pip("check")

    def _pip(self, *args: str) -> None:
        run(sys.executable, "-m", "pip", "--python", self.python, *args, cwd=self.elsewhere, env={})

    def env(self, stack: Stack) -> dict[str, str]:
        """Return the environment variables of a process here that uses a server; the checkout is not on the path."""
        return {name: value for name, value in stack.env.items() if name != "PYTHONPATH"}

    def run(self, stack: Stack, *args: str) -> str:
        """Run Python with these arguments, and return its output."""
        return run(self.python, *args, env=self.env(stack), cwd=self.elsewhere)

    async def attempt(self, stack: Stack, run_id: UUID) -> State[None]:
        """Execute an existing flow run like a worker of this environment, and return its final state."""
        printed = await asyncio.to_thread(self.run, stack, "-m", "prefect.engine", str(run_id))
        async with get_client() as client:
            state = (await client.read_flow_run(run_id)).state
        assert state is not None and state.is_final(), printed  # noqa: PT018 - one reason: the run did not end
        return state

    def worker(self, stack: Stack, pool: str) -> Process:
        """Start a worker of the project's own type, found through the wheel's entry point."""
        command = [str(self.python), "-m", "prefect", "worker", "start", "--type", WORKER_TYPE, "--pool", pool]
        return Process(command, self.env(stack), self.home / "worker.log")


def pinned(requirements: Path = REQUIREMENTS) -> Iterator[Requirement]:
    """Yield the pinned requirements for this Python and platform."""
    for line in re.findall(r"^[^\s#].*?(?= \\$)", requirements.read_text(), re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def link(requirement: Requirement, packages: Path) -> None:
    """Link a pinned package from the test environment into a folder of packages."""
    found = distribution(requirement.name)
    assert found.version in requirement.specifier, f"{requirement}: the tests run with {found.version}"
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        to = packages / top
        if not to.exists():
            to.symlink_to(Path(str(found.locate_file(top))))
