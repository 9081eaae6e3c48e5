"""One fleet for all tests of this package, started as deploy/compose.yaml and its documentation page describe."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.fleet.processes import missing_packages
from sandbox.isolation import DIRECTORY
from sandbox.postgres import PROGRAMS, postgres
from sandbox.stack import CHECKOUT
from tests.deploy.image import Image, build
from tests.deploy.machine import HOST, Machine
from tests.docs import pages

BESIDE = {
    "nginx-light": shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"),
    "openssl": shutil.which("openssl"),
}
MISSING = [*missing_packages(), *(package for package, found in BESIDE.items() if not found)]
"""The Debian packages that are missing."""
SIGNED_IN = "ALTER USER prefect PASSWORD '{}'"
"""Sets the password, as PostgreSQL's image does."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that need the whole fleet: next to other tests, it takes minutes to start."""
    if "machine" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(scope="package")
def programs() -> None:
    """Skip the tests if a program of the fleet is missing; fail if `REQUIRE_FLEET` is set."""
    if MISSING and not os.environ.get("REQUIRE_FLEET"):
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    assert not MISSING, f"REQUIRE_FLEET is set, and not installed: apt-get install {' '.join(MISSING)}"


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """A folder that programs of other users can enter, too."""
    DIRECTORY.chmod(0o711)
    made = DIRECTORY / "fleet"
    made.mkdir(mode=0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="package")
def image(folder: Path) -> Image:
    """The image, built from the Dockerfile."""
    (folder / "image").mkdir()
    return build(folder / "image")


@pytest.fixture(scope="package")
def machine(programs: None, folder: Path, image: Image) -> Iterator[Machine]:
    """All services of deploy/compose.yaml, started in order of their dependencies."""
    machine = Machine(folder, image)
    shutil.copytree(CHECKOUT / "deploy", folder / "deploy")
    with postgres(folder) as address:
        machine.ports["postgres", 5432] = int(address.partition(":")[2].partition("/")[0])
        make_secrets(machine)
        make_database(machine, folder / "postgres" / "data" / "pg_hba.conf")
        try:
            machine.up()
            yield machine
        finally:
            machine.down()


def make_secrets(machine: Machine) -> None:
    """Create the files with the secrets by the commands of the page, and write nginx's configuration."""
    commands = [block for block in pages.read("how-to/fleet.md") if block.language == "sh"]
    replaced = {f"{name}:{port}": f"127.0.0.1:{at}" for (name, port), at in machine.ports.items()}
    pages.follow(commands, machine.folder, {"prefect.example.com": HOST, **replaced}, {"PATH": os.environ["PATH"]})
    machine.secrets.chmod(0o711)  # lets other users enter it; a container mounts only the files
    [mount] = machine.services["proxy"]["volumes"]
    source, target, _ = mount.split(":")
    where = Path(machine.here(target, "proxy"))
    where.parent.mkdir(parents=True)
    where.write_text(machine.here((machine.folder / "deploy" / source).read_text(), "proxy"))


def make_database(machine: Machine, rules: Path) -> None:
    """Create the database that compose.yaml requests, and set the user's password."""
    wanted = machine.services["postgres"]["environment"]
    password = Path(machine.here(wanted["POSTGRES_PASSWORD_FILE"], "postgres")).read_text()
    ask = [
        f"{PROGRAMS}/psql",
        "-h",
        "127.0.0.1",
        "-p",
        str(machine.ports["postgres", 5432]),
        "-U",
        "prefect",
        "postgres",
    ]
    for statement in (f"CREATE DATABASE {wanted['POSTGRES_DB']}", SIGNED_IN.format(password)):
        subprocess.run([*ask, "-c", statement], check=True, capture_output=True)
    rules.write_text("host all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n")
    subprocess.run([*ask, "-c", "SELECT pg_reload_conf()"], check=True, capture_output=True)
