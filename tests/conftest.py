"""Fixtures and settings of all tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sandbox.stack import Stack
from tasks.model.rotation import KeySettings, Rotation
from tests.certificates import self_signed

# No deadline: a slow machine must not fail a test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option with which the browser's tests take the documentation's screenshots."""
    parser.addoption("--take-pictures", action="store_true", help="write docs/images from the tests in tests/browser")


def pytest_configure(config: pytest.Config) -> None:
    """Trust one authority without a private key, instead of all the public ones, and let workers be stopped.

    Tests connect to loopback only, and every HTTP client loads the whole file, which takes 17 ms of CPU time otherwise.
    A script that runs the tests in its background makes them, and the workers that they start, ignore SIGINT; Prefect
    turns SIGTERM into it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = tempfile.TemporaryDirectory(prefix="key-rotation-trust-")
    config.add_cleanup(home.cleanup)
    os.environ["SSL_CERT_FILE"], key = self_signed(Path(home.name))
    Path(key).unlink()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that start a Prefect server, so that no module can forget to."""
    if "migrated" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to run without groups: otherwise each process would start servers and workers for every group.

    A test with real servers that fails runs again, and the summary names it: on a busy machine it may fail once, but
    with a fault in the code it fails twice.
    """
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    if getattr(config.option, "loadgroup", False):
        grouped = [item for item in items if item.get_closest_marker("xdist_group")]
        if not all("@" in item.nodeid for item in grouped):
            raise pytest.UsageError("This pytest-xdist does not see xdist_group with this pytest.")


@pytest.fixture
def rotation() -> Rotation:
    """A rotation with two destinations and the default overlap."""
    return Rotation(
        name="checkout",
        connection="openrouter",
        key=KeySettings(name="checkout service", limit_usd=50, limit_reset="monthly"),
        destinations=["vault-secret/checkout", "secret/checkout"],
    )


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Stack], Stack]:
    """Give a server, before its start, a database with all of Prefect's migrations applied.

    They take longer than the rest of a start, so the first process that needs them applies them once for this test run.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    template = shared / "migrated.db"
    with (shared / "migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            migrate_once(template)

    def begun(stack: Stack) -> Stack:
        stack.database.parent.mkdir()
        shutil.copyfile(template, stack.database)
        return stack

    return begun


def migrate_once(template: Path) -> None:
    """Apply the migrations in a separate database, and copy it atomically."""
    stack = Stack()
    try:
        stack.cli("server", "database", "upgrade", "--yes")
        with closing(sqlite3.connect(stack.database)) as database:
            database.execute("VACUUM INTO ?", (str(template),))
    finally:
        stack.stop()
