"""Build the wheel of a release, from this commit and nothing beside it: `make release`.

The version in `pyproject.toml`, the top of `CHANGELOG.md` and the tag of the commit have to agree first.
The same commit gives the same wheel, byte by byte, whose SHA-256 is in `dist/SHA256SUMS`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Collection
from pathlib import Path

DIST = Path("dist")


def disagreement(version: str, changelog: str, tags: Collection[str]) -> str | None:
    """Return, in one sentence, why a commit is not the release of its version.

    Args:
        version: The version in `pyproject.toml`.
        changelog: The text of `CHANGELOG.md`.
        tags: The commit's tags.

    Returns:
        The sentence; `None` if it is the release.
    """
    newest = re.search(r"^## .*$", changelog, re.MULTILINE)
    wanted = f"## {version} - "
    if newest is None or not re.fullmatch(re.escape(wanted) + r"\d{4}-\d{2}-\d{2}", newest[0]):
        found = f"`{newest[0]}`" if newest else "missing"
        return f"CHANGELOG.md has no entry for {version}: its first heading is {found}, not `{wanted}<YYYY-MM-DD>`."
    if f"v{version}" not in tags:
        return f"This commit is not tagged v{version}; its tags: {', '.join(sorted(tags)) or 'none'}."
    return None


def main() -> None:
    """Check the commit that is checked out in the current folder, and build its wheel into `dist/`."""
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        # Neither changes that are not committed nor what an earlier build left behind gets into the wheel.
        # A zip, because tarfile has its safe filter only since Python 3.11.4.
        with zipfile.ZipFile(io.BytesIO(_git("archive", "--format=zip", "HEAD"))) as archive:
            archive.extractall(folder)
        source = Path(folder)
        version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
        tags = _git("tag", "--points-at", "HEAD").decode().split()
        if why := disagreement(version, (source / "CHANGELOG.md").read_text(), tags):
            sys.exit(why)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        committed_at = _git("show", "--no-patch", "--format=%ct", "HEAD").decode().strip()
        reproducible = {**os.environ, "SOURCE_DATE_EPOCH": committed_at}
        subprocess.run([*pip, "--wheel-dir", DIST, source], env=reproducible, check=True)
    [wheel] = DIST.glob(f"*-{version}-*.whl")
    line = f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}"
    (DIST / "SHA256SUMS").write_text(f"{line}\n")
    print(f"Built into {DIST}/, with its SHA-256 in SHA256SUMS:\n{line}")


def _git(*args: str) -> bytes:
    return subprocess.run(["git", *args], check=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
