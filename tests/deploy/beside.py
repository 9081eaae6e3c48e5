"""Another migration, server, services and worker next to those of Compose, on the same database and Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from redis import Redis

from sandbox.stack import START_TIMEOUT_SECONDS, Process, free_port
from tests.deploy.machine import INHERITED, Machine


@dataclass
class Beside:
    """Processes that run next to the services of a machine.

    Args:
        machine: The machine.
        name: The name for messages, folders and logs.
    """

    machine: Machine
    name: str
    port: int = field(default_factory=free_port)
    health: int = field(default_factory=free_port)
    consumers: int = 0
    """The number of event consumers before the start."""
    processes: dict[str, Process] = field(default_factory=dict)

    def start(self, part: str, command: list[str], env: dict[str, str]) -> None:
        """Start a part with its own home, and without this process's environment."""
        home = self.machine.folder / self.name / part
        home.mkdir(parents=True)
        mine = {key: value for key, value in os.environ.items() if key in INHERITED}
        at = {"HOME": str(home), "PATH": self.machine.image.path, "PREFECT_WORKER_WEBSERVER_PORT": str(self.health)}
        self.processes[part] = Process(command, {**mine, **env, **at}, self.machine.folder / f"{self.name}-{part}.log")

    def start_all(self, parts: dict[str, tuple[list[str], dict[str, str]]]) -> None:
        """Run the migration, then start the other parts in parallel."""
        self.consumers = self.count_consumers()
        self.start("migrate", *parts["migrate"])
        self.wait("migrate", self.migrated)
        for part in ("server", "services", "worker"):
            self.start(part, *parts[part])

    def stop(self) -> None:
        """Stop everything."""
        for process in self.processes.values():
            process.stop()

    def wait(self, part: str, ready: Callable[[], bool]) -> None:
        """Wait until a part is ready; fail if it exits with an error, or not in time."""
        process = self.processes[part]
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not ready():
            assert process.popen.poll() in {None, 0}, process.log.read_text()[-3000:]
            assert time.monotonic() < deadline, process.log.read_text()[-3000:]
            time.sleep(0.2)

    def migrated(self) -> bool:
        """Return whether the migration has succeeded."""
        return self.processes["migrate"].popen.poll() == 0

    def answers(self) -> bool:
        """Return whether the server is ready, which includes its database."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api/ready", timeout=30).is_success
        except httpx.TransportError:
            return False

    def count_consumers(self) -> int:
        """Return the number of event consumers; every services process adds some."""
        port, password = self.machine.ports["redis", 6379], self.machine.redis_password
        with Redis(port=port, password=password, decode_responses=True) as redis:
            groups: list[dict[str, Any]] = [
                group for stream in redis.scan_iter(_type="STREAM") for group in redis.xinfo_groups(stream)
            ]
        return sum(int(group["consumers"]) for group in groups)

    def consumes(self) -> bool:
        """Return whether more consumers read events than before the start."""
        return self.count_consumers() > self.consumers

    def polls(self, name: str) -> bool:
        """Return whether the API lists an online worker whose name starts with `name`."""
        with self.machine.http(self.machine.operator) as client:
            found = client.post("/api/work_pools/key-rotation/workers/filter", json={}).raise_for_status().json()
        return any(worker["name"].startswith(name) and worker["status"] == "ONLINE" for worker in found)
