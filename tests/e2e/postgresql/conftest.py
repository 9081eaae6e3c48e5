"""A Prefect server on PostgreSQL instead of SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandbox.isolation import DIRECTORY
from sandbox.postgres import postgres, settings_of
from sandbox.stack import Stack
from tests.e2e.conftest import PERSISTENT, UNHURRIED, in_use, leave_server


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """A server like the one on SQLite."""
    # PostgreSQL's user must reach the folder, but each new pytest closes its own temporary directories to others.
    with (
        TemporaryDirectory(dir=DIRECTORY) as folder,
        postgres(Path(folder)) as address,
        Stack(PERSISTENT | UNHURRIED | settings_of(address)) as stack,
    ):
        yield from in_use(stack)


@pytest.fixture(scope="module", autouse=True)
def one_server_at_a_time() -> Iterator[None]:
    """Use one server only: this process's background services keep the first server that they have found."""
    leave_server()
    yield
    leave_server()
