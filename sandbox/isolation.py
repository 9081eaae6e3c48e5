"""Isolate this process from the user's own Prefect; imports only the standard library."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

DIRECTORY = Path(tempfile.mkdtemp(prefix="key-rotation-"))
"""The directory for the files of this process and its children; removed at exit."""
atexit.register(shutil.rmtree, DIRECTORY, ignore_errors=True)


def isolate_prefect() -> None:
    """Drop the user's `PREFECT_*` variables, and give Prefect its own home and profiles.

    It has an effect only before Prefect is imported in this process.
    """
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    home = DIRECTORY / "prefect"
    os.environ |= {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
