"""A fleet: PostgreSQL, Redis, several Prefect servers behind a balancer, their services, and workers.

It has the settings of prefect.env and deploy/fleet.env, and adds addresses only.
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
"""How often the supervisor looks whether a part has ended by itself."""


def missing_packages() -> list[str]:
    """Return the Debian packages that a fleet requires and that are not installed."""
    required = {"postgresql": PROGRAMS, "redis-server": PROGRAM}
    return [package for package, program in required.items() if program is None]


class Part:
    """A part of the fleet that can be killed and started again.

    Args:
        begin: Starts it, waits until it is ready, and returns its process.
        kill: Ends its process at once.
    """

    def __init__(self, begin: Callable[[], Process], kill: Callable[[Process], None] = Process.kill) -> None:
        self._begin = begin
        self._kill = kill
        self.process = begin()
        self.is_wanted = True
        """Whether it is to be up, so that it is started again where it has ended by itself."""

    def kill(self) -> None:
        """End it at once, and leave it down."""
        self.is_wanted = False
        if self.process.is_alive:
            self._kill(self.process)

    def start_again(self) -> None:
        """Start it after it has ended.

        Raises:
            RuntimeError: It did not start.
        """
        self.process = self._begin()


class Fleet(Stack):
    """The processes of a fleet; use it in `with`. What ends by itself is started again, as systemd or Docker would."""

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
        """Start everything but the workers, each part when those that it needs are ready.

        Raises:
            RuntimeError: A part did not start; the message includes the end of its log.
        """
        self.parts["postgres"] = Part(self._database.start, stop_immediately)
        self.parts["redis"] = Part(self._redis.start)
        self.cli("server", "database", "upgrade", "-y")
        # Two servers that register Prefect's block types at once would fail, so each waits for the one before.
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
        """Start the workers, and watch over all parts from now on."""
        for name in [f"worker-{number}" for number in range(1, WORKERS + 1)]:
            self.parts[name] = Part(partial(self.start_worker, name))
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self._is_closing.wait(LOOK_SECONDS):
            for name, part in self.parts.items():
                if part.is_wanted and not part.process.is_alive:
                    # What it needs may be down: then it ends once more, and the next look starts it again.
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
