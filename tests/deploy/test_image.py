"""deploy/Dockerfile, executed step by step in an empty folder, and the resulting image."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.stack import CHECKOUT
from tests.deploy.image import DOCKERFILE, Image, instructions
from tests.e2e.wheels import run

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("deploy")]
STEPS = list(instructions(DOCKERFILE.read_text()))
COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "deploy" / "compose.yaml").read_text())
WHERE = """
import json, blocks, flows, prefect_redis, tasks
from flows.automations import FOLDER
print(json.dumps([blocks.__file__, tasks.__file__, flows.__file__, *map(str, FOLDER.glob("*.yaml"))]))
"""


def test_the_image_holds_the_package_with_its_files(image: Image) -> None:
    """Python imports the installed wheel, its automations and the Redis package, but nothing from the checkout."""
    python = image.here("/opt/key-rotation/bin/python")
    files = json.loads(run(python, "-c", WHERE, cwd=image.here("."), env={}))

    assert len(files) > len(("blocks", "tasks", "flows"))
    assert [file for file in files if "/opt/key-rotation/lib/" not in file] == []


def test_the_images_requirements_fit_each_other(image: Image) -> None:
    """No dependency of an installed package is missing or incompatible."""
    python = image.here("/opt/key-rotation/bin/python")

    assert "No broken requirements" in run(
        sys.executable, "-m", "pip", "--python", python, "check", cwd=image.here(".")
    )


def test_the_command_of_the_image_is_the_workers(image: Image) -> None:
    """The workers in compose.yaml run the image's command, after a prefix that loads the password."""
    command = COMPOSE["services"]["worker-1"]["command"]

    assert command[command.index("--") + 1 :] == image.command


def test_the_user_of_the_image_is_not_root(image: Image) -> None:
    """Its id is numeric, so that Kubernetes can verify that it is not root, and it owns its home."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user)
    assert f"--chown={image.user} {image.env['HOME']} {image.env['HOME']}" in DOCKERFILE.read_text()


def test_no_step_needs_a_shell() -> None:
    """All commands are in exec form."""
    said = [words.partition(" CMD ")[2] or words for name, words in STEPS if name in {"RUN", "CMD", "HEALTHCHECK"}]

    assert all(isinstance(json.loads(each), list) for each in said)


def test_what_is_copied_is_sent_to_the_builder() -> None:
    """The exceptions in .dockerignore are exactly the sources of the COPY instructions."""
    copied = [words.split()[:-1] for name, words in STEPS if name == "COPY" and "--from" not in words]
    ignored = Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines()

    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {
        source for sources in copied for source in sources
    }


def test_the_image_is_tagged_with_the_version() -> None:
    """Compose and the chart values use the image of the current version."""
    charts = [yaml.safe_load(file.read_text()) for file in (CHECKOUT / "deploy" / "kubernetes").glob("*.yaml")]
    tags = {COMPOSE["services"]["worker-1"]["image"].partition(":")[2]}
    tags |= {
        str(each["image"]["prefectTag"])
        for chart in charts
        for each in (chart.get("worker"), prefect_of(chart))
        if each
    }

    assert tags == {version("key-rotation")}


def prefect_of(chart: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section of the server chart's values that names its image."""
    found: dict[str, Any] | None = chart.get("global", {}).get("prefect")
    return found


def test_the_interpreter_is_one_that_the_package_supports() -> None:
    """Both stages use the same base image, and pyproject.toml permits its Python version."""
    bases = {words.partition(" AS ")[0] for name, words in STEPS if name == "FROM"}
    permitted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["requires-python"]

    [minor] = {int(found) for base in bases for found in re.findall(r"^python:3\.(\d+)-slim", base)}
    low, high = (int(bound) for bound in re.findall(r"3\.(\d+)", permitted))
    assert len(bases) == 1
    assert low <= minor < high
