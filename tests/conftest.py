"""Fixtures and settings of all tests."""

from __future__ import annotations

import fcntl
import os
import re
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

E2E = Path(__file__).parent / "e2e"
# No deadline: a slow machine must not fail a test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
# `make check` runs each property with fewer examples.
settings.register_profile("quick", settings.get_profile("unhurried"), max_examples=20)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes the browser tests write the screenshots of the documentation."""
    parser.addoption("--take-pictures", action="store_true", help="write docs/images from the tests in tests/browser")


def pytest_configure(config: pytest.Config) -> None:
    """Trust a single certificate instead of the public authorities, and restore the default handling of SIGINT.

    Tests connect to loopback only, and every HTTP client loads the whole file of authorities, which would take 17 ms of
    CPU time. A script that runs the tests in the background makes them and their workers ignore SIGINT; Prefect turns
    SIGTERM into SIGINT, so the workers would not stop.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = tempfile.TemporaryDirectory(prefix="key-rotation-trust-")
    config.add_cleanup(home.cleanup)
    os.environ["SSL_CERT_FILE"], key = self_signed(Path(home.name))
    Path(key).unlink()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the modules of which no test is wanted: each process would import and collect them for nothing.

    They are those whose `pytestmark` has a mark that `-m "not … and not …"` excludes, and all of `tests/e2e`.
    """
    if not re.fullmatch(r"(not )?\w+( and (not )?\w+)*", expression := config.option.markexpr):
        return None
    unwanted = re.findall(r"\bnot (\w+)", expression)
    if collection_path == E2E:
        return "e2e" in unwanted or None
    if not unwanted or collection_path.suffix != ".py":
        return None
    marked = rf"^pytestmark = .*\bpytest\.mark\.({'|'.join(unwanted)})\b"
    return bool(re.search(marked, collection_path.read_text(), re.MULTILINE)) or None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test that starts a Prefect server, so that no module has to do it."""
    if "migrated" in getattr(item, "fixturenames", ()) or E2E in item.path.parents:
        item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Rerun a failed e2e test once, and refuse to run if the installed pytest-xdist ignores groups.

    On a busy machine, a test with real servers may fail once; the summary names it. A fault in the code fails it twice.
    Without groups, each process would start the servers and workers of every group.
    """
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    if getattr(config.option, "loadgroup", False):
        grouped = [item for item in items if item.get_closest_marker("xdist_group")]
        if not all("@" in item.nodeid for item in grouped):
            raise pytest.UsageError("This pytest-xdist does not see xdist_group with this pytest.")


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget that a service of another test has asked to wait."""
    monkeypatch.setattr("blocks.http._limited", {})


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
    """Copy a database with all of Prefect's migrations applied into a stack before it starts.

    The migrations take longer than the rest of a start, so the first process that needs them applies them once for this
    test run.
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
    """Apply the migrations in a separate database, and write the template by `VACUUM INTO`."""
    stack = Stack()
    try:
        stack.cli("server", "database", "upgrade", "--yes")
        with closing(sqlite3.connect(stack.database)) as database:
            database.execute("VACUUM INTO ?", (str(template),))
    finally:
        stack.stop()
