"""Prefect's background services in a process that ends as soon as one of them does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docket import Worker
from prefect.server.services.base import Service

from flows.services import run_until_one_ends
from sandbox.stack import CHECKOUT, free_port

ENDED_WITHIN_SECONDS = 100
STARTED = "Starting action message handler"
STUBBORN = """
import asyncio, sys
from flows import services

tasks = []

async def go_on():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def leave_one_behind():
    tasks.append(asyncio.create_task(go_on()))
    await asyncio.sleep(0)

services.END_WITHIN_SECONDS = 1.0
services._run_all_services = leave_one_behind
sys.exit(services.main())
"""
"""Services that end, and leave a task that cannot be cancelled."""


def environment(home: Path) -> dict[str, str]:
    """The environment of services with a database of their own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "INFO",
        "PYTHONPATH": str(CHECKOUT),
    }


@pytest.mark.slow
def test_services_that_cannot_start_end_their_process(tmp_path: Path) -> None:
    """While the database is down they cannot start; unless the process ends, nothing would ever start them again."""
    nowhere = f"postgresql+asyncpg://prefect@127.0.0.1:{free_port()}/prefect"
    env = environment(tmp_path) | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": nowhere}

    done = subprocess.run(
        [sys.executable, "-m", "flows.services"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=ENDED_WITHIN_SECONDS,
    )

    assert done.returncode == 1
    assert "has ended: ConnectionRefusedError. This process ends, to be started again." in done.stderr


@pytest.mark.slow
def test_services_store_what_they_have_when_they_are_stopped(tmp_path: Path) -> None:
    """Docker, systemd and Kubernetes send SIGTERM; Python itself would end at once, with events in memory."""
    env = environment(tmp_path)
    upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(upgrade, env=env, cwd=tmp_path, check=True, capture_output=True)
    services = subprocess.Popen(
        [sys.executable, "-m", "flows.services"],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert services.stdout is not None
    next(line for line in services.stdout if STARTED in line)

    services.terminate()
    said, _ = services.communicate(timeout=ENDED_WITHIN_SECONDS)

    assert services.returncode == 0, said
    assert "Received cancellation, stopping services" in said


@pytest.mark.slow
def test_the_process_ends_although_a_task_goes_on(tmp_path: Path) -> None:
    """Python itself would wait for it without a limit, and no supervisor would restart the services."""
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=ENDED_WITHIN_SECONDS,
    )

    assert done.returncode == 1, done.stderr
    assert "This process ends, to be started again." in done.stderr


@pytest.fixture
def only_docket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No service but docket's worker, and the former reaction to SIGTERM afterwards."""
    monkeypatch.setattr(Service, "enabled_services", classmethod(lambda _: []))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("only_docket")
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("no such task"), "RuntimeError"),
        (asyncio.CancelledError(), "CancelledError"),
        (None, "it returned"),
    ],
    ids=["error", "cancelled", "return"],
)
async def test_the_end_of_dockets_worker_is_noticed(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, why: str
) -> None:
    """Without it, no run is scheduled or found late, and Prefect itself goes on as if nothing were missing."""

    async def end(_: Worker) -> None:
        if error:
            raise error

    monkeypatch.setattr(Worker, "run_forever", end)
    monkeypatch.setattr("flows.services._end_for_certain", lambda: None)

    said = await asyncio.wait_for(run_until_one_ends(), 30)

    assert said == f"Docket's worker, which schedules runs and finds late ones, has ended: {why}"
