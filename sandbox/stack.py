"""A Prefect server with workers, on loopback and in a temporary directory.

The demo, `make up`, the end-to-end tests and the benchmarks use it. It reads nothing of the user's own Prefect: every
`PREFECT_*` variable is dropped, and the profile is a new one. Its processes are stopped by their ids, or by a watchdog
if this process is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, ClassVar, Self

import certifi
import httpx

from sandbox import watchdog
from sandbox.isolation import DIRECTORY

if TYPE_CHECKING:  # importing Prefect takes a second
    from prefect.context import SettingsContext

CHECKOUT = Path(__file__).resolve().parent.parent
SETTINGS_FILE = CHECKOUT / "prefect.env"
POOL = "key-rotation"
WORKER_TYPE = "key-rotation"
START_TIMEOUT_SECONDS = 240.0
STOP_TIMEOUT_SECONDS = 15.0


def free_port(wanted: int = 0) -> int:
    """Return a free port on loopback, `wanted` if possible."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], process: Process, what: str) -> None:
    """Wait until a started process is ready; stop it if it does not become ready.

    Args:
        ready: Returns whether it is ready.
        process: The process.
        what: Its name, for the error message.

    Raises:
        RuntimeError: It exited, or was not ready in time; the message includes the end of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.is_alive:
        if ready():
            return
        time.sleep(0.1)
    process.stop()
    raise RuntimeError(f"{what} did not start:\n{process.log.read_text()[-2000:]}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that all child processes are stopped."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def read_settings(file: Path = SETTINGS_FILE) -> dict[str, str]:
    """Read a file of `NAME=value` lines."""
    lines = (line.strip() for line in file.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Process:
    """A child process and its descendants.

    Args:
        command: The command line.
        env: The environment.
        log: The file for its output.
        stop_signal: The signal that stops it.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], log: Path, *, stop_signal: signal.Signals = signal.SIGTERM
    ) -> None:
        self.log = log
        self._stop_signal = stop_signal
        self._file: IO[bytes] = log.open("ab")
        # In a session of its own, so that Ctrl-C does not reach it and its whole process group can be killed.
        self.popen = subprocess.Popen(  # noqa: S603 - the command is ours
            command, env=env, stdout=self._file, stderr=subprocess.STDOUT, cwd=env["HOME"], start_new_session=True
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is still running."""
        return self.popen.poll() is None

    def stop(self) -> None:
        """Stop the process; kill it with its descendants if it does not exit in time."""
        if self.is_alive:
            self.popen.send_signal(self._stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_TIMEOUT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process with its descendants."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._file.close()


class Stack:
    """A Prefect server with its embedded database, and workers; a context manager.

    Args:
        settings: Settings that extend or override those of the project's file.
        home: The server's home; a temporary directory by default, which is removed at the end.
        port: The server's port; a free one by default.
    """

    settings_files: ClassVar[tuple[Path, ...]] = (SETTINGS_FILE,)
    """The files with the settings of its processes; later ones override earlier ones."""

    def __init__(
        self, settings: dict[str, str] | None = None, *, home: Path | None = None, port: int | None = None
    ) -> None:
        watchdog.start(DIRECTORY)
        self._temporary = home is None
        self.home = home or Path(tempfile.mkdtemp(prefix="stack-", dir=DIRECTORY))
        self.port = port or free_port()
        self._settings = settings or {}
        self._processes: list[Process] = []
        self.server: Process | None = None
        self._client: SettingsContext | None = None

    @property
    def url(self) -> str:
        """The dashboard's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str:
        """The prefix of the URLs of the dashboard's pages."""
        return f"{self.url}/v2"

    @property
    def database(self) -> Path:
        """The file of the embedded database."""
        return self.home / "prefect" / "prefect.db"

    @property
    def env(self) -> dict[str, str]:
        """The environment of this server's processes and clients."""
        foreign = ("PREFECT_", "OPENROUTER_", "VAULT_", "INFISICAL_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {
            **inherited,
            **{name: value for file in self.settings_files for name, value in read_settings(file).items()},
            # `python` in a job's command must be this interpreter.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
            "HOME": str(self.home),
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_PROFILES_PATH": str(self.home / "prefect" / "profiles.toml"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_UI_URL": self.ui_url,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_ENCRYPTION_KEY": self._encryption_key(),
            "PREFECT_API_SSL_CERT_FILE": self._authorities(),
            "PREFECT_CLI_COLORS": "false",
            **self._settings,
        }

    def _encryption_key(self) -> str:
        file = self.home / "encryption-key"
        if not file.exists():
            from cryptography.fernet import Fernet  # only needed to start a server

            file.write_bytes(Fernet.generate_key())
            file.chmod(0o600)
        return file.read_text()

    def _authorities(self) -> str:
        # Prefect loads this file for every client that it creates, several per run, although nothing here uses TLS.
        # With one certificate instead of all public authorities, that saves 17 ms of CPU time each.
        file = self.home / "authorities.pem"
        if not file.exists():
            first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
            file.write_text(first + end)
        return str(file)

    def __enter__(self) -> Self:
        try:
            self.start_server()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_server(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: It did not answer in time; the message includes the end of its log.
        """
        self.server = self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self._wait(self.server)

    def restart_server(self) -> None:
        """Stop the server and start it again on the same port and database.

        Raises:
            RuntimeError: It did not start.
        """
        if self.server is not None:
            self.server.stop()
            self._processes.remove(self.server)
        self.start_server()

    def _wait(self, server: Process, url: str | None = None) -> None:
        login = self.env.get("PREFECT_SERVER_API_AUTH_STRING")
        auth = httpx.BasicAuth(*login.split(":", 1)) if login else None
        with httpx.Client(auth=auth, timeout=2) as client:
            wait_until(lambda: self._answers(client, url or self.url), server, "The Prefect server")

    def _answers(self, client: httpx.Client, url: str) -> bool:
        # Another server may have taken the port meanwhile.
        with suppress(httpx.HTTPError, ValueError):
            answer = client.get(f"{url}/api/admin/settings")
            home = answer.json().get("home", "")
            return answer.is_success and Path(home).resolve() == (self.home / "prefect").resolve()
        return False

    def start_worker(
        self,
        name: str = "worker",
        *,
        kind: str = WORKER_TYPE,
        pool: str = POOL,
        limit: int | None = None,
        queue: str | None = None,
    ) -> Process:
        """Start a worker on a pool.

        Args:
            name: The worker's name.
            kind: The worker's type; the project's own by default.
            pool: The pool; the project's own by default.
            limit: The maximum number of concurrent runs; the type's own limit by default.
            queue: The only work queue that it serves; all of the pool by default.

        Returns:
            The worker's process.
        """
        how = [] if limit is None else ["--limit", str(limit)]
        how += [] if queue is None else ["--work-queue", queue]
        return self._start(name, "worker", "start", "--pool", pool, "--type", kind, "--name", name, *how)

    def _start(self, name: str, *args: str, module: str = "prefect") -> Process:
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        process = Process([sys.executable, "-m", module, *args], self.env, self.home / "logs" / f"{name}.log")
        self._processes.append(process)
        return process

    def cli(self, *args: str, cwd: Path = CHECKOUT) -> str:
        """Run a `prefect` command against this server.

        Args:
            *args: The arguments.
            cwd: The working directory; the checkout by default.

        Returns:
            The standard output.

        Raises:
            RuntimeError: The command failed; the message includes its output.
        """
        return self.module("prefect", *args, cwd=cwd)

    def module(self, name: str, *args: str, cwd: Path = CHECKOUT) -> str:
        """Run a Python module as a command against this server.

        Args:
            name: The module.
            *args: The arguments.
            cwd: The working directory; the checkout by default.

        Returns:
            The standard output.

        Raises:
            RuntimeError: The command failed; the message includes its output.
        """
        done = subprocess.run(  # noqa: S603 - the command is ours
            [sys.executable, "-m", name, *args],
            env={**self.env, "PYTHONPATH": str(CHECKOUT)},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} {' '.join(args)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def stop(self) -> None:
        """Stop all processes, the latest first, and remove the temporary directory."""
        for process in reversed(self._processes):
            process.stop()
        self._processes.clear()
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)

    @contextmanager
    def as_client(self) -> Iterator[None]:
        """Point Prefect's client in this process to this server: `get_client()`, blocks, variables."""
        from prefect.context import SettingsContext  # importing Prefect takes a second

        if self._client is None:
            self._client = self._client_settings()
        with SettingsContext(profile=self._client.profile, settings=self._client.settings):
            yield

    def _client_settings(self) -> SettingsContext:
        from prefect.context import use_profile
        from prefect.settings import Profile

        names = (
            "PREFECT_API_URL",
            "PREFECT_API_SSL_CERT_FILE",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED",
            "PREFECT_UI_URL",
            "PREFECT_HOME",
            "PREFECT_PROFILES_PATH",
        )
        own = Profile(name="stack", settings={name: self.env[name] for name in names})
        with use_profile(own, include_current_context=False, override_environment_variables=True) as made:
            return made
