"""The services of deploy/compose.yaml as processes on this machine, with their own order, commands and settings."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    temporary_settings,
)

from sandbox import watchdog
from sandbox.isolation import DIRECTORY
from sandbox.postgres import PROGRAMS
from sandbox.stack import CHECKOUT, START_TIMEOUT_SECONDS, Process, free_port, read_settings
from tests.deploy.image import Image

COMPOSE = CHECKOUT / "deploy" / "compose.yaml"
HOST = "localhost"
HEALTH = 8080
"""The port of a worker's health check."""
PORTS = {
    "postgres": [5432],
    "redis": [6379],
    "server-1": [4200],
    "server-2": [4200],
    "proxy": [8443, 8080],
    "worker-1": [HEALTH],
    "worker-2": [HEALTH],
}
"""The ports on which the services listen, according to their programs or commands."""
PATHS = ("/tmp", "/data", "/home/prefect", "/etc")  # noqa: S108 - in a container
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the containers listen on it; nothing here does
INHERITED = {watchdog.MARK}


class Machine:
    """The replacement for the host and its containers.

    A path in a container becomes a folder of that service; a service's name and port become a port on loopback. Nothing
    else in commands, settings and files changes.

    Args:
        folder: The folder for all files, which other users can enter.
        image: The project's image.
    """

    def __init__(self, folder: Path, image: Image) -> None:
        watchdog.start(DIRECTORY)
        self.folder = folder
        self.image = image
        self.ports = {(name, port): free_port() for name, ports in PORTS.items() for port in ports}
        self.processes: dict[str, Process] = {}

    @cached_property
    def compose(self) -> dict[str, Any]:
        """The content of compose.yaml, with the host name, its only variable, filled in from the file beside it."""
        said = read_settings(self.folder / "deploy" / ".env")["KEY_ROTATION_HOST"]
        text, count = re.subn(r"\$\{KEY_ROTATION_HOST:\?[^}]+\}", said, COMPOSE.read_text())
        assert count
        assert "${" not in text
        return dict(yaml.safe_load(text))

    @property
    def services(self) -> dict[str, Any]:
        """The services, by name."""
        return dict(self.compose["services"])

    @property
    def addresses(self) -> dict[str, str]:
        """The fixed addresses, by the service that has one."""
        networks = {name: each["networks"]["default"] for name, each in self.services.items() if "networks" in each}
        return {name: str(network["ipv4_address"]) for name, network in networks.items()}

    @property
    def subnet(self) -> str:
        """The network of the containers."""
        [network] = self.compose["networks"]["default"]["ipam"]["config"]
        return str(network["subnet"])

    @property
    def access_log(self) -> Path:
        """The file for the proxy's log of requests."""
        return self.folder / "proxy" / "tmp" / "access.log"

    @property
    def checked(self) -> list[str]:
        """The services that have a health check, either in compose.yaml or from the image."""
        said = {name: each.get("healthcheck", {}) for name, each in self.services.items()}
        return [name for name, how in said.items() if "test" in how or ("build" in self.services[name] and not how)]

    @property
    def url(self) -> str:
        """The public address, which the proxy serves."""
        return f"https://{HOST}:{self.ports['proxy', 8443]}"

    @property
    def secrets(self) -> Path:
        """The folder with the files of secrets, where the page's commands create it."""
        return self.folder / "deploy" / "secrets"

    @property
    def authority(self) -> str:
        """The path of the TLS certificate, which clients of the fleet trust."""
        return str(self.secrets / "tls-certificate.pem")

    @property
    def operator(self) -> tuple[str, str]:
        """The user and the password for the API."""
        user, password = read_settings(self.secrets / "worker.env")["PREFECT_API_AUTH_STRING"].split(":")
        return user, password

    @property
    def redis_password(self) -> str:
        """Redis's password."""
        return (self.secrets / "redis.conf").read_text().split()[1]

    def address(self, server: str) -> str:
        """Return the address of one server, without the proxy."""
        return f"http://127.0.0.1:{self.ports[server, 4200]}"

    def http(self, auth: tuple[str, str] | None = None) -> httpx.Client:
        """Return a client of the proxy, with or without credentials."""
        trust = ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.url, auth=auth, verify=trust, timeout=120)

    @contextmanager
    def as_client(self) -> Iterator[None]:
        """Configure Prefect's client in this process for the proxy, with credentials."""
        with temporary_settings(
            {
                PREFECT_API_URL: f"{self.url}/api",
                PREFECT_API_AUTH_STRING: ":".join(self.operator),
                PREFECT_API_SSL_CERT_FILE: self.authority,
                PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
            }
        ):
            yield

    @staticmethod
    def setting(told: dict[str, Any], name: str) -> Any:
        """Return a setting by its full name, such as `docket_url`, from the nested groups of a server's settings."""
        if name in told:
            return told[name]
        [group] = [group for group in told if name.startswith(f"{group}_")]
        return Machine.setting(told[group], name.removeprefix(f"{group}_"))

    def here(self, text: str, name: str) -> str:
        """Translate a command, setting or file of a container for this machine.

        Args:
            text: The text to translate.
            name: The service.
        """
        own = {port: at for (service, port), at in self.ports.items() if service == name}
        places = {
            "/run/secrets": self.secrets,
            **{path: self.folder / name / path[1:] for path in PATHS},
            **{f"{service}:{port}": f"127.0.0.1:{at}" for (service, port), at in self.ports.items()},
            **{f"{fixed}:4200": f"127.0.0.1:{self.ports[server, 4200]}" for server, fixed in self.addresses.items()},
            **{f"127.0.0.1:{port}": f"127.0.0.1:{at}" for port, at in own.items()},
            **{f"listen {port}": f"listen 127.0.0.1:{at}" for port, at in own.items()},
            EVERYWHERE: "127.0.0.1",
            self.subnet: "127.0.0.0/8",
            "/dev/stdout": self.access_log,  # nobody but root may open the one of this process
        }
        if text.isdigit():
            return str(own.get(int(text), text))
        return re.sub("|".join(map(re.escape, places)), lambda found: str(places[found[0]]), text)

    def env(self, name: str) -> dict[str, str]:
        """Return a service's environment: from its image, its files and compose.yaml, but not from this process."""
        service = self.services[name]
        mine = {key: value for key, value in os.environ.items() if key in INHERITED}
        if "build" not in service:
            return {**mine, "PATH": f"{PROGRAMS}:{os.environ['PATH']}:/usr/sbin", "HOME": str(self.folder / name)}
        files = [read_settings((COMPOSE.parent / file).resolve()) for file in service["env_file"]]
        said = {"FORWARDED_ALLOW_IPS": ""}  # uvicorn believes loopback, on which no container's proxy is
        for each in (self.image.env, *files, service["environment"]):
            said |= {key: self.here(str(value), name) for key, value in each.items()}
        health = {"PREFECT_WORKER_WEBSERVER_PORT": str(self.ports.get((name, HEALTH), HEALTH))}
        home = self.folder / name / "home" / "prefect"
        return {**mine, **said, "PATH": self.image.path, "HOME": str(home), **health}

    def command(self, name: str, words: list[str]) -> list[str]:
        """Return a service's command, translated for this machine."""
        program, *rest = (self.here(word, name) for word in words)
        at = {
            "redis-cli": ["-p", str(self.ports["redis", 6379])],
            "pg_isready": ["-p", str(self.ports["postgres", 5432])],
        }
        if program == "redis-server":
            rest += ["--bind", "127.0.0.1", "--port", str(self.ports["redis", 6379])]
        user = self.services[name].get("user")
        found = shutil.which(program, path=self.env(name)["PATH"])
        assert found, f"{program} is not on the path of {name}"
        return [*_as_user(user), found, *at.get(program, []), *rest]

    def start(self, name: str) -> None:
        """Start a service."""
        for folder in ("tmp", "data", "home/prefect", "etc"):
            where = self.folder / name / folder
            where.mkdir(parents=True, exist_ok=True)
            where.chmod(0o777)
        command = self.command(name, self.services[name]["command"])
        self.processes[name] = Process(command, self.env(name), self.folder / f"{name}.log")

    def is_ready(self, name: str, condition: str) -> bool:
        """Return whether a service meets a condition of `depends_on`.

        Args:
            name: The service.
            condition: The condition, as compose.yaml names it.

        Raises:
            AssertionError: The service has exited; the message has its log.
        """
        process = self.processes.get(name)  # none is PostgreSQL's, which other code starts
        ended = process.popen.poll() if process else None
        if condition == "service_completed_successfully":
            assert ended in {None, 0}, self.log(name)
            return ended == 0
        assert ended is None, self.log(name)
        return condition == "service_started" or self.check(name)

    def check(self, name: str) -> bool:
        """Run the health check of a service once."""
        service = self.services[name]
        test = service["healthcheck"]["test"] if "healthcheck" in service else ["CMD", *self.image.health]
        kind, *words = test
        assert kind == "CMD"
        command, env = self.command(name, words), self.env(name)
        return subprocess.run(command, env=env, capture_output=True, check=False, timeout=120).returncode == 0

    def log(self, name: str) -> str:
        """Return the end of a service's output."""
        return f"{name}:\n{self.processes[name].log.read_text()[-3000:]}" if name in self.processes else ""

    def up(self) -> None:
        """Start every service after its dependencies, and wait until all health checks pass."""
        started = {"postgres"}
        while waiting := {name: each for name, each in self.services.items() if name not in started}:
            for name, service in waiting.items():
                needs = service.get("depends_on", {})
                needs = {key: {"condition": "service_started"} for key in needs} if isinstance(needs, list) else needs
                if set(needs) <= started:
                    for other, how in needs.items():
                        self.wait(other, how["condition"])
                    self.start(name)
                    started.add(name)
        for name in self.checked:
            self.wait(name, "service_healthy")

    def wait(self, name: str, condition: str) -> None:
        """Wait until a service meets a condition of `depends_on`."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self.is_ready(name, condition):
            assert time.monotonic() < deadline, f"{name} is not {condition}\n{self.log(name)}"
            time.sleep(0.2)

    def down(self) -> None:
        """Stop all services in reverse order."""
        for process in reversed(list(self.processes.values())):
            process.stop()
        self.processes.clear()


def _as_user(user: str | None) -> list[str]:
    # Only for programs of the system: another user cannot read the interpreter of the tests.
    if user is None or os.geteuid() != 0:
        return []
    uid, gid = user.split(":")
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
