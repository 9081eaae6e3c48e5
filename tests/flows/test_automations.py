"""The files in `automations/`, read without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.errors import ConfigurationError
from flows.automations import read_files
from sandbox.stack import CHECKOUT, read_settings
from tasks.model.tries import TRIES_AGAIN

PAGE = CHECKOUT / "docs" / "how-to" / "notifications.md"
AUTOMATIONS = {file.name: wanted for file, wanted in read_files().items()}
DEPLOYMENTS = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
FLOWS = {deployment["entrypoint"].partition(":")[2].replace("_", "-") for deployment in DEPLOYMENTS}


def flows_told_by(event: str) -> list[str]:
    """Return the flows for which an automation notifies somebody of an event."""
    triggers = [wanted["trigger"] for wanted in AUTOMATIONS.values() if event in wanted["trigger"]["expect"]]
    return [name for trigger in triggers for name in trigger["match_related"]["prefect.resource.name"]]


@pytest.mark.parametrize("event", ["prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.Late"])
def test_every_flow_is_told_once(event: str) -> None:
    """A failure of any flow of this project is notified exactly once."""
    assert sorted(flows_told_by(event)) == sorted(FLOWS)


def test_the_overview_is_refreshed_however_a_run_ends() -> None:
    """A run with a scheduled try is shown at once, and not only after another run has ended."""
    [overview] = [deployment for deployment in DEPLOYMENTS if deployment["name"] == "overview"]
    ends = {"Completed", "Failed", "Crashed", "Cancelled", TRIES_AGAIN}

    assert {name.removeprefix("prefect.flow-run.") for name in overview["triggers"][0]["expect"]} == ends


def test_a_silence_counts_for_every_flow_of_this_project_and_no_other() -> None:
    """Other flows on the server have heartbeats of their own, which are ignored."""
    trigger = AUTOMATIONS["crashed-runs.yaml"]["trigger"]

    assert trigger["match_related"]["prefect.resource.role"] == ["flow"]
    assert sorted(trigger["match_related"]["prefect.resource.name"]) == sorted(FLOWS)


def test_a_silence_is_three_heartbeats() -> None:
    """A live run must not be marked as crashed because one heartbeat was late."""
    heartbeat = int(read_settings()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])

    assert AUTOMATIONS["crashed-runs.yaml"]["trigger"]["within"] == 3 * heartbeat


def test_the_page_has_each_file_and_what_it_needs() -> None:
    """The how-to page's table agrees with the files."""
    rows = re.findall(r"^\| `([a-z-]+\.yaml)` \|.*\| (?:`(--[a-z]+)` )?\|$", PAGE.read_text(), re.MULTILINE)

    assert dict(rows) == {name: needed_by(wanted) for name, wanted in AUTOMATIONS.items()}


def needed_by(wanted: dict[str, Any]) -> str:
    """Return the option that an automation requires, if any."""
    return "".join(
        f"--{value[1:]}" for action in wanted["actions"] for value in action.values() if str(value).startswith("$")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "a.yaml is not valid YAML."),
        ("- name: a", "a.yaml is not a valid automation: check name."),
        ("name: a", "a.yaml is not a valid automation: check actions."),
        ("{name: a, actions: [{block_document: $nobody}]}", "a.yaml: unknown placeholder $nobody; known are $notify, "),
    ],
)
def test_a_file_that_is_no_automation_is_named(tmp_path: Path, text: str, said: str) -> None:
    """One sentence names the file and the place in it."""
    (tmp_path / "a.yaml").write_text(text)

    with pytest.raises(ConfigurationError) as refused:
        read_files(tmp_path)

    assert str(refused.value).startswith(said)
    assert str(refused.value).endswith("Nothing was created.")


def test_an_installed_package_brings_them_along(tmp_path: Path) -> None:
    """Whoever installs the package without the checkout has the same files beside its modules."""
    for name in ["blocks", "tasks", "flows", "automations"]:
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md"]:
        shutil.copy(CHECKOUT / name, tmp_path)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tmp_path)]

    subprocess.run([sys.executable, "-m", "pip", *build], check=True, cwd=tmp_path)

    [wheel] = tmp_path.glob("*.whl")
    assert {f"automations/{name}" for name in AUTOMATIONS} <= set(zipfile.ZipFile(wheel).namelist())


def test_an_empty_folder_is_no_success(tmp_path: Path) -> None:
    """Whoever runs the command in another folder learns that it found nothing."""
    with pytest.raises(ConfigurationError, match=r"--folder: .* contains no \*\.yaml files\."):
        read_files(tmp_path)
