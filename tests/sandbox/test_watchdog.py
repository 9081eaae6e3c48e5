"""When a process is killed, the watchdog ends its servers, workers and runs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT
from tests.e2e.conftest import needs_postgresql, needs_redis

ENDED_WITHIN_SECONDS = 30
SLEEP = "import time; time.sleep(600)"
# Like a worker, it starts its run in a separate session.
WORKER = f"""
import subprocess, sys
run = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(run.pid, flush=True)
run.wait()
"""
# It stops its worker when it reads a line, and exits at the end of its input.
STARTER = f"""
import sys, time
from sandbox import isolation, watchdog
from sandbox.stack import Process, Stack

stack = Stack()
log = stack.home / "worker.log"
worker = Process([sys.executable, "-c", {WORKER!r}], stack.env, log)
while not log.read_text().endswith("\\n"):
    time.sleep(0.01)
dog = watchdog.start(isolation.DIRECTORY)
print(isolation.DIRECTORY, dog.pid, worker.pid, log.read_text().strip(), flush=True)
sys.stdin.readline()
worker.stop()
stack.stop()
print(flush=True)
sys.stdin.read()
"""

# Redis overwrites its environment with its title, unless it is told not to.
DATABASES = """
import sys
from sandbox import isolation
from sandbox.postgres import Postgres
from sandbox.redis import Redis

print(Redis(isolation.DIRECTORY).start().pid, Postgres(isolation.DIRECTORY).start().pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def open_() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


class Started:
    """A process that has started a worker, which has started a run.

    Args:
        open_: Closes the file descriptors, and kills the process if it still runs.
    """

    def __init__(self, open_: ExitStack) -> None:
        self.popen = open_.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", STARTER], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        open_.callback(self.popen.kill)
        directory, *pids = self.read().split()
        self.directory = Path(directory)
        self.watchdog, self.worker, self.run = (watch(int(pid), open_) for pid in pids)

    def read(self) -> str:
        """Read the next line of its output."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def stop_worker(self) -> None:
        """Make it stop its worker, as at a normal end."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()
        self.read()

    def end(self) -> int:
        """Make it exit by closing its input, and return its exit code."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        return self.popen.wait()


def watch(pid: int, open_: ExitStack) -> int:
    """Open a descriptor, which refers to this process even after its id is reused."""
    descriptor = os.pidfd_open(pid)
    open_.callback(os.close, descriptor)
    return descriptor


def ended(process: int, within: float = ENDED_WITHIN_SECONDS) -> bool:
    """Wait until a process has exited, which makes its descriptor readable."""
    return bool(select.select([process], [], [], within)[0])


def test_what_a_killed_process_started_ends_with_it(open_: ExitStack) -> None:
    """The worker, its run in a separate session and the watchdog exit, and the temporary directory is removed."""
    started = Started(open_)
    assert not ended(started.run, within=0)

    started.popen.kill()

    assert ended(started.worker)
    assert ended(started.run)
    assert ended(started.watchdog)
    assert not started.directory.exists()


@needs_redis
@needs_postgresql
def test_databases_of_a_killed_process_end_with_it(open_: ExitStack) -> None:
    """Both change what the system shows about them, and Redis loses the mark with it."""
    command = [sys.executable, "-c", DATABASES]
    starter = open_.enter_context(
        subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    open_.callback(starter.kill)
    assert starter.stdout is not None
    redis, postgresql = (watch(int(pid), open_) for pid in starter.stdout.readline().split())

    starter.kill()

    assert ended(redis)
    assert ended(postgresql)


def test_a_process_that_ends_by_itself_leaves_nothing(open_: ExitStack) -> None:
    """A stopped worker is gone at once; a run that outlives its worker ends with the process."""
    started = Started(open_)

    started.stop_worker()
    assert ended(started.worker, within=0)
    assert not ended(started.run, within=0)

    assert started.end() == 0
    assert ended(started.run)
    assert ended(started.watchdog)
    assert not started.directory.exists()


def test_what_others_have_started_goes_on(open_: ExitStack) -> None:
    """The watchdog kills only the descendants of its own process."""
    killed, other = Started(open_), Started(open_)

    killed.popen.kill()

    assert ended(killed.watchdog)
    assert not ended(other.worker, within=0)
    assert not ended(other.run, within=0)
    assert other.directory.exists()
