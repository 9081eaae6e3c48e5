"""A fleet: PostgreSQL, Redis, several Prefect servers behind a load balancer, their services, and workers.

Its settings are those of prefect.env and deploy/fleet.env; only addresses are added.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

from sandbox.balancer import start_balancer
from sandbox.postgres import PROGRAMS, Postgres, settings_of, stop_immediately
from sandbox.redis import PROGRAM, Redis
from sandbox.stack import CHECKOUT, SETTINGS_FILE, Process, Stack, free_port

SERVERS, WORKERS = 2, 3
LOOK_SECONDS = 0.5
"""The interval at which the supervisor checks whether a part has exited, in seconds."""


def missing_packages() -> list[str]:
    """Return the Debian packages that a fleet requires but that are not installed."""
    required = {"postgresql": PROGRAMS, "redis-server": PROGRAM}
    return [package for package, program in required.items() if program is None]


class Part:
    """A part of the fleet that can be killed and restarted.

    Args:
        begin: Starts it, waits until it is ready, and returns its process.
        kill: Kills its process.
    """

    def __init__(self, begin: Callable[[], Process], kill: Callable[[Process], None] = Process.kill) -> None:
        self._begin = begin
        self._kill = kill
        self.process = begin()
        self.is_wanted = True
        """Whether it should be up; then the supervisor restarts it after an exit."""

    def kill(self) -> None:
        """Kill it, and keep it down."""
        self.is_wanted = False
        if self.process.is_alive:
            self._kill(self.process)

    def start_again(self) -> None:
        """Restart it.

        Raises:
            RuntimeError: It did not start.
        """
        self.process = self._begin()


class Fleet(Stack):
    """The processes of a fleet; a context manager. A part that exits is restarted, as systemd or Docker would do."""

    settings_files: ClassVar[tuple[Path, ...]] = (SETTINGS_FILE, CHECKOUT / "deploy" / "fleet.env")

    def __init__(self) -> None:
        super().__init__()
        self._database, self._redis = Postgres(self.home), Redis(self.home)
        self._settings = settings_of(self._database.address) | {
            "PREFECT_REDIS_MESSAGING_URL": self._redis.address(0),
            "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": self._redis.address(0),
            "PREFECT_SERVER_DOCKET_URL": self._redis.address(1),
        }
        self._ports = [free_port() for _ in range(SERVERS)]
        self.parts: dict[str, Part] = {}
        self.started_again: Counter[str] = Counter()
        self._is_closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    def start_server(self) -> None:
        """Start everything but the workers, each part after those that it requires.

        Raises:
            RuntimeError: A part did not start; the message includes the end of its log.
        """
        self.parts["postgres"] = Part(self._database.start, stop_immediately)
        self.parts["redis"] = Part(self._redis.start)
        self.cli("server", "database", "upgrade", "-y")
        # One by one: two servers that register Prefect's block types concurrently would fail.
        for number, port in enumerate(self._ports, 1):
            self.parts[f"server-{number}"] = Part(partial(self._begin_server, f"server-{number}", port))
        self.parts["services"] = Part(lambda: self._start("services", module="flows.services"))
        self._processes.append(start_balancer(self.home, self.port, self._ports))

    def _begin_server(self, name: str, port: int) -> Process:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        process = self._start(name, "server", "start", "--no-services", *where)
        self._wait(process, f"http://127.0.0.1:{port}")
        return process

    def start_workers(self) -> None:
        """Start the workers, and supervise all parts from now on."""
        for name in [f"worker-{number}" for number in range(1, WORKERS + 1)]:
            self.parts[name] = Part(partial(self.start_worker, name))
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self._is_closing.wait(LOOK_SECONDS):
            for name, part in self.parts.items():
                if part.is_wanted and not part.process.is_alive:
                    # A part that it requires may be down; the next check restarts it.
                    with suppress(RuntimeError):
                        part.start_again()
                    self.started_again[name] += 1

    def stop(self) -> None:
        """Stop all processes, and remove the temporary directory."""
        self._is_closing.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for part in reversed(self.parts.values()):
            part.process.stop()
        super().stop()
