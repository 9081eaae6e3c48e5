"""`.ci/release.py`, run in a temporary git repository: version, changelog and tag of a release must agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "something"
version = "1.2.0"

[tool.setuptools]
py-modules = ["something"]
"""
AUTHOR = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
GIT = {**AUTHOR, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
RELEASED = "# Changelog\n\n## 1.2.0 - 2026-12-01\n\n- Something.\n\n## 1.1.0 - 2026-11-01\n"
UNRELEASED = "# Changelog\n\n## Unreleased\n\n- Something.\n\n## 1.1.0 - 2026-11-01\n"
NO_ENTRY = "CHANGELOG.md has no entry for 1.2.0: its first heading is {}, not `## 1.2.0 - <YYYY-MM-DD>`."


class Repository:
    """A git repository with a project in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet")
        (folder / "something.py").write_text("committed = True\n")

    def git(self, *args: str) -> None:
        """Run git in it."""
        subprocess.run(["git", *args], cwd=self.folder, env={**os.environ, **GIT}, check=True)

    def commit(self, changelog: str, *tags: str) -> None:
        """Commit the project with a changelog, and tag the commit."""
        (self.folder / "pyproject.toml").write_text(PROJECT)
        (self.folder / "CHANGELOG.md").write_text(changelog)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "Do something")
        for tag in tags:
            self.git("tag", tag)

    def release(self) -> subprocess.CompletedProcess[str]:
        """Run what `make release` runs."""
        command = [sys.executable, str(CHECKOUT / ".ci" / "release.py")]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def wheels(self) -> list[str]:
        """Return the names of the files that were built."""
        return [file.name for file in self.folder.glob("dist/*")]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository without a commit."""
    return Repository(tmp_path / "repository")


@pytest.mark.parametrize(
    ("changelog", "tags", "sentence"),
    [
        (UNRELEASED, ["v1.2.0"], NO_ENTRY.format("`## Unreleased`")),
        ("# Changelog\n", ["v1.2.0"], NO_ENTRY.format("missing")),
        (RELEASED.replace("1.2.0", "1.3.0"), ["v1.2.0"], NO_ENTRY.format("`## 1.3.0 - 2026-12-01`")),
        (RELEASED.replace("-12-01", ""), ["v1.2.0"], NO_ENTRY.format("`## 1.2.0 - 2026`")),
        (RELEASED, [], "This commit is not tagged v1.2.0; its tags: none."),
        (RELEASED, ["v1.1.0", "1.2.0"], "This commit is not tagged v1.2.0; its tags: 1.2.0, v1.1.0."),
    ],
)
def test_what_does_not_agree_is_not_built(
    repository: Repository, changelog: str, tags: list[str], sentence: str
) -> None:
    """If version, changelog or tag disagree, the command fails with one sentence that says why, and builds nothing."""
    repository.commit(changelog, *tags)

    done = repository.release()

    assert (done.returncode, done.stderr, repository.wheels()) == (1, f"{sentence}\n", [])


def test_the_tag_of_an_older_commit_does_not_count(repository: Repository) -> None:
    """Commits after the tagged one are not part of the release."""
    repository.commit(RELEASED, "v1.2.0")
    repository.commit(f"{RELEASED}\n- Something later.\n")

    done = repository.release()

    assert (done.returncode, repository.wheels()) == (1, [])


def test_the_wheel_holds_what_was_tagged(repository: Repository) -> None:
    """Neither an uncommitted change nor a leftover of an earlier build is part of the wheel."""
    repository.commit(RELEASED, "v1.2.0")
    (repository.folder / "something.py").write_text("committed = False\n")
    left_behind = repository.folder / "build" / "lib"
    left_behind.mkdir(parents=True)
    (left_behind / "stale.py").touch()

    done = repository.release()

    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(repository.folder / "dist" / "something-1.2.0-py3-none-any.whl") as wheel:
        code = {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".py")}
    assert code == {"something.py": b"committed = True\n"}


def test_a_tag_gives_the_same_wheel_wherever_it_is_built(repository: Repository, tmp_path: Path) -> None:
    """So whoever installs a wheel can build it themselves, and compare its SHA-256 with `SHA256SUMS`."""
    repository.commit(RELEASED, "v1.2.0")
    copied = Repository(tmp_path / "copy")
    (copied.folder / "something.py").unlink()
    copied.git("pull", "--quiet", "--tags", str(repository.folder))
    for each in (repository, copied):
        done = each.release()
        assert done.returncode == 0, done.stderr

    built = repository.folder / "dist", copied.folder / "dist"
    sums = [(each / "SHA256SUMS").read_text() for each in built]
    digest = sha256((built[0] / "something-1.2.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert sums == [f"{digest}  something-1.2.0-py3-none-any.whl\n"] * 2


def test_the_manual_and_deploy_name_this_version() -> None:
    """Wheel, tag, image and folder in the commands and files for operators are those of `pyproject.toml`."""
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    named = re.compile(r"(?:key[_-]rotation[-:]|`v|prefectTag: \")(\d+\.\d+\.\d+)")
    files = [*(CHECKOUT / "docs").rglob("*.md"), *filter(Path.is_file, (CHECKOUT / "deploy").rglob("*"))]
    found = {str(file.relative_to(CHECKOUT)): set(named.findall(file.read_text())) for file in files}

    assert {file: each for file, each in found.items() if each - {version}} == {}
    assert {"docs/how-to/openrouter.md", "deploy/compose.yaml"} <= {file for file, each in found.items() if each}
