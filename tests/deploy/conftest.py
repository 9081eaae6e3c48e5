"""One fleet for all of these tests, as deploy/compose.yaml and its page start it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.fleet.stand import missing_packages
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
"""Debian's packages of which no program is here."""
SIGNED_IN = "ALTER USER prefect PASSWORD '{}'"
"""What the image of PostgreSQL does with the password that it gets."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs the whole fleet, which takes minutes to start where other tests run beside it."""
    if "machine" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(scope="package")
def programs() -> None:
    """The programs that the fleet consists of."""
    if MISSING and not os.environ.get("REQUIRE_FLEET"):
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    assert not MISSING, f"REQUIRE_FLEET is set, and not installed: apt-get install {' '.join(MISSING)}"


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """A folder that the users of other programs can enter, too."""
    DIRECTORY.chmod(0o711)
    made = DIRECTORY / "fleet"
    made.mkdir(mode=0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="package")
def image(folder: Path) -> Image:
    """The image that the Dockerfile describes."""
    (folder / "image").mkdir()
    return build(folder / "image")


@pytest.fixture(scope="package")
def machine(programs: None, folder: Path, image: Image) -> Iterator[Machine]:
    """All services of compose, started in its order."""
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
    """Make the files with the secrets by the commands of the page, and mount nginx's settings."""
    commands = [block for block in pages.read("how-to/fleet.md") if block.language == "sh"]
    replaced = {f"{name}:{port}": f"127.0.0.1:{at}" for (name, port), at in machine.ports.items()}
    pages.follow(commands, machine.folder, {"prefect.example.com": HOST, **replaced}, {"PATH": os.environ["PATH"]})
    machine.secrets.chmod(0o711)  # in a container only the files are visible
    [mount] = machine.services["proxy"]["volumes"]
    source, target, _ = mount.split(":")
    where = Path(machine.here(target, "proxy"))
    where.parent.mkdir(parents=True)
    where.write_text(machine.here((machine.folder / "deploy" / source).read_text(), "proxy"))


def make_database(machine: Machine, rules: Path) -> None:
    """Make the user, the database and the password that compose asks PostgreSQL's image for."""
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
