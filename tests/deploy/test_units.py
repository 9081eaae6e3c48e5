"""The units in deploy/systemd: their commands and environment, run next to the fleet, and systemd's own checks."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sandbox.stack import CHECKOUT, read_settings
from tests.deploy.beside import Beside
from tests.deploy.machine import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("deploy")]
FOLDER = CHECKOUT / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
FILES = {"prefect.env": CHECKOUT / "prefect.env", "fleet.env": CHECKOUT / "deploy" / "fleet.env"}
"""The files of the checkout that the page copies to /etc/key-rotation."""
WORKER = "a"
EXPOSURE = 15
"""The maximum exposure that `systemd-analyze security` may report, in tenths: 1.5 of 10."""
ANALYZE = shutil.which("systemd-analyze")
systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def settings(unit: Path) -> list[tuple[str, str]]:
    """Return the lines of a unit's `[Service]` section, in order."""
    service = unit.read_text().partition("[Service]\n")[2].partition("\n[")[0]
    lines = [line for line in service.splitlines() if line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def run_of(unit: Path, instance: str, machine: Machine) -> tuple[list[str], dict[str, str]]:
    """Return a unit's command and environment, translated for this machine."""
    env: dict[str, str] = {}
    command: list[str] = []
    for name, value in settings(unit):
        match name:
            case "EnvironmentFile":
                file = Path(value.replace("%i", instance)).name
                if not value.startswith("-") or (machine.secrets / file).exists():
                    env |= read_settings(FILES.get(file, machine.secrets / file))
            case "ExecStart":
                program, *words = value.replace("%i", instance).replace("%H", socket.gethostname()).split()
                command = [str(machine.image.here(program)), *words]
            case "Environment":
                key, _, text = value.partition("=")
                env[key] = machine.here(text, "units")
    return command, env


@pytest.fixture(scope="module")
def units(machine: Machine) -> Iterator[Beside]:
    """The processes of the units."""
    beside = Beside(machine, "units")
    (machine.secrets / f"worker-{WORKER}.env").write_text(f"PREFECT_WORKER_WEBSERVER_PORT={beside.health}\n")
    here = {"PREFECT_API_URL": f"{machine.url}/api", "PREFECT_API_SSL_CERT_FILE": machine.authority}
    parts = {
        "migrate": run_of(FOLDER / "key-rotation-migrate.service", "", machine),
        "services": run_of(FOLDER / "key-rotation-services.service", "", machine),
        "server": run_of(FOLDER / "key-rotation-server@.service", str(beside.port), machine),
        "worker": run_of(FOLDER / "key-rotation-worker@.service", WORKER, machine),
    }
    parts["worker"][1].update(here)
    beside.health = int(parts["worker"][1]["PREFECT_WORKER_WEBSERVER_PORT"])
    try:
        beside.start_all(parts)
        yield beside
    finally:
        beside.stop()


def test_the_server_of_a_unit_answers(units: Beside) -> None:
    """It listens on the port in its instance name, and can reach the database."""
    units.wait("server", units.answers)


def test_the_services_of_a_unit_take_part(units: Beside) -> None:
    """They read events from Redis, next to the services of Compose."""
    units.wait("services", units.consumes)


def test_the_worker_of_a_unit_asks_for_work(units: Beside) -> None:
    """It polls through the proxy, with TLS and the password, and its name consists of host and instance."""
    units.wait("worker", lambda: units.polls(f"{socket.gethostname()}-{WORKER}"))


def test_the_worker_of_a_unit_tells_how_it_fares(units: Beside) -> None:
    """It answers on loopback, at the port in its instance's own file; else all workers of a host want 8080."""
    health = f"http://127.0.0.1:{units.health}/health"
    units.wait("worker", lambda: units.polls(f"{socket.gethostname()}-{WORKER}"))

    assert httpx.get(health, timeout=30).status_code == 200
    assert ("Environment", "PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1") in settings(
        FOLDER / "key-rotation-worker@.service"
    )


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_hardened_like_the_others(unit: Path) -> None:
    """All units have the same restrictions."""
    own = {"Type", "Restart", "RestartSec", "TimeoutStopSec", "ExecStart"}
    places = ("EnvironmentFile", "Environment", "StateDirectory", "WorkingDirectory")
    mine, first = (
        [(name, value) for name, value in settings(each) if name not in own and name not in places]
        for each in (unit, UNITS[0])
    )

    assert mine == first
    assert ("DynamicUser", "yes") in mine


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, image: object) -> Path:
    """The units in one folder, with an existing program, and an instance of each template."""
    folder = tmp_path_factory.mktemp("systemd")
    for unit in UNITS:
        text = re.sub(r"/opt/key-rotation/bin/\w+", "/bin/true", unit.read_text())
        (folder / unit.name.replace("@.", "@4200.")).write_text(text)
    return folder


@systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_a_unit(installed: Path, unit: Path) -> None:
    """`systemd-analyze verify` reports nothing."""
    name = unit.name.replace("@.", "@4200.")
    done = subprocess.run(
        [str(ANALYZE), "verify", f"./{name}"], cwd=installed, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_a_unit_hardly_exposed(installed: Path, unit: Path) -> None:
    """The exposure that systemd itself computes stays below the limit."""
    name = unit.name.replace("@.", "@4200.")
    command = [str(ANALYZE), "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE}", f"./{name}"]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
