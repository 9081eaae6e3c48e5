"""The contributors' guide matches the Makefile, the code layout, CI and the pre-commit hooks."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from sandbox.stack import CHECKOUT
from tests.test_packages import PACKAGES

COMMAND = re.compile(r"(?:`|entry: )make ([a-z]+)")
PACKAGE = re.compile(r"^\| `((?:blocks|tasks|flows)/[^`]*)` \|", re.MULTILINE)


def read(file: str) -> str:
    """Read a file of the checkout."""
    return (CHECKOUT / file).read_text()


def steps(workflow: Any) -> list[Any]:
    """Return the steps of a workflow's jobs."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize(
    "file",
    ["CONTRIBUTING.md", "SECURITY.md", ".pre-commit-config.yaml", ".github/PULL_REQUEST_TEMPLATE.md"],
)
def test_each_command_is_one_that_make_lists(file: str) -> None:
    """A contributor must not be asked to run a command that does not exist."""
    listed = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout

    named = COMMAND.findall(read(file))

    assert named
    assert [name for name in named if not re.search(rf"^make {name}\t", listed, re.MULTILINE)] == []


def test_the_guide_lists_every_package() -> None:
    """Its table has every package whose imports are restricted; packages inside `blocks` are part of its row."""
    packages = {
        row.replace("*.py", "").strip("/").replace("/", ".") for row in PACKAGE.findall(read("CONTRIBUTING.md"))
    }

    assert packages == {name for name in PACKAGES if not name.startswith("blocks.")}


def test_the_workflow_checks_out_and_runs_one_command() -> None:
    """CI runs one command, which also works locally; actions are pinned by commit, and the workflow can only read."""
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))

    checkout, run = steps(workflow)
    assert re.fullmatch(r"actions/checkout@[0-9a-f]{40}", checkout["uses"])
    assert run == {"run": ".ci/run"}
    assert workflow["permissions"] == {}
    assert [job["permissions"] for job in workflow["jobs"].values()] == [{"contents": "read"}]


def test_the_guide_names_what_ci_runs() -> None:
    """CI runs the commands that the guide names, in the same order."""
    [named] = re.findall(r"^CI runs `\.ci/run`: ([^.]*)", read("CONTRIBUTING.md"), re.MULTILINE)

    ran = [
        name
        for line in re.findall(r"^(?:exec )?make (.*)$", read(".ci/run"), re.MULTILINE)
        for name in line.split()
        if "=" not in name
    ]
    assert COMMAND.findall(named) == ran


def test_hooks_fetch_nothing() -> None:
    """Every hook is local and uses only what is already installed."""
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]

    assert [each["repo"] for each in repositories] == ["local"]
    assert {hook["language"] for hook in repositories[0]["hooks"]} == {"system"}
