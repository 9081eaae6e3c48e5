"""A Prefect server on PostgreSQL in the place of the one on SQLite."""

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
    # pytest closes its own temporary directories to other users, whenever it starts anew.
    with (
        TemporaryDirectory(dir=DIRECTORY) as folder,
        postgres(Path(folder)) as address,
        Stack(PERSISTENT | UNHURRIED | settings_of(address)) as stack,
    ):
        yield from in_use(stack)


@pytest.fixture(scope="module", autouse=True)
def one_server_at_a_time() -> Iterator[None]:
    """What this process sends in the background goes to the server that it found first: here, to this one."""
    leave_server()
    yield
    leave_server()
