"""Execute the Dockerfile step by step, in folders that replace the root of each stage."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from sandbox.stack import CHECKOUT
from tests.e2e.wheels import NOT_SOURCE, link, pinned, run

DOCKERFILE = CHECKOUT / "deploy" / "Dockerfile"
INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$", re.MULTILINE)
SCRIPT = """#!{python}
from {module} import {function}
raise SystemExit({function}())
"""


@dataclass
class Image:
    """The configuration of an image, and the folder that replaces its root.

    Args:
        root: The folder.
    """

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def here(self, path: str) -> Path:
        """Return the path on this machine of a path in the image."""
        return self.root / (self.workdir if not path.startswith("/") else "").lstrip("/") / path.lstrip("/")

    @property
    def path(self) -> str:
        """The `PATH` of the image, with its folders on this machine first."""
        folders = self.env["PATH"].split(":")
        return ":".join([*(str(self.here(folder)) for folder in folders), *folders])


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the arguments of each instruction of a Dockerfile."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        found = INSTRUCTION.fullmatch(line)
        assert found, f"no instruction in one line: {line}"
        yield found[1], found[2]


def build(folder: Path) -> Image:
    """Execute the Dockerfile, and return the image of its last stage.

    Pinned requirements are linked from the test environment, which was installed from the same pins. So pip finds every
    requirement satisfied, or fails, because it must not use an index.

    Args:
        folder: The folder in which the stages' folders are created.

    Raises:
        ValueError: The Dockerfile has an unsupported instruction.
    """
    stages: dict[str, Image] = {}
    image = Image(folder)
    for name, said in instructions(DOCKERFILE.read_text()):
        match name:
            case "FROM":
                image = Image(folder / str(len(stages)))
                image.root.mkdir()
                stages[said.partition(" AS ")[2]] = image
            case "WORKDIR":
                image.workdir = said
                image.here(said).mkdir(parents=True, exist_ok=True)
            case "COPY":
                _copy(said, image, stages)
            case "RUN":
                _run(json.loads(said), image)
            case "ENV":
                image.env |= dict(part.split("=", 1) for part in said.split())
            case "USER":
                image.user = said
            case "HEALTHCHECK":
                image.health = json.loads(said.partition(" CMD ")[2])
            case "CMD":
                image.command = json.loads(said)
            case _:
                raise ValueError(f"{name} {said}")
    return image


def _copy(said: str, image: Image, stages: dict[str, Image]) -> None:
    options = dict(re.findall(r"--(\w+)=(\S+)", said))
    *sources, target = re.sub(r"--\S+ ", "", said).split()
    where = image.here(target)
    if "from" in options:
        # Linked, not copied: a virtual environment contains its own path, which in an image is the same in both stages.
        assert sources == [target]
        where.parent.mkdir(parents=True, exist_ok=True)
        where.symlink_to(stages[options["from"]].here(target))
        return
    for source in sources:
        if (CHECKOUT / source).is_dir():
            shutil.copytree(CHECKOUT / source, where, ignore=NOT_SOURCE)
        else:
            shutil.copy(CHECKOUT / source, where)


def _run(command: list[str], image: Image) -> None:
    program, *words = command
    assert program == "python", "the tests know only the base image's interpreter"
    here = [str(image.here(word)) if word.startswith("/") else word for word in words]
    if "--require-hashes" in here:
        _link(image.here(here[here.index("--requirement") + 1]), Path(here[here.index("--python") + 1]))
    run(sys.executable, *here, cwd=image.here("."), env={"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def _link(requirements: Path, python: Path) -> None:
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    for requirement in pinned(requirements):
        link(requirement, packages)
        for name, text in _scripts(requirement, python):
            script = python.parent / name
            script.write_text(text)
            script.chmod(0o755)


def _scripts(requirement: Requirement, python: Path) -> Iterator[tuple[str, str]]:
    for entry in distribution(requirement.name).entry_points.select(group="console_scripts"):
        yield entry.name, SCRIPT.format(python=python, module=entry.module, function=entry.attr)
