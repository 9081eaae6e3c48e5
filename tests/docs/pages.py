"""Reads the commands, programs and files of a page, and runs its commands as a reader would.

Blocks marked `sh` are run by a test; commands that no test can run are marked `bash`, and the page says so.
`test_every_block.py` holds all pages to that.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from sandbox.stack import CHECKOUT

FENCE = re.compile(
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
DONE = "--- end of block ---"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        language: `sh` for commands, `text` for what the commands before it print, anything else for a file.
        title: The file's name, where the page gives one.
        text: What is in it.
    """

    language: str
    title: str | None
    text: str


def read(page: str) -> list[Block]:
    """Read a page's blocks, in order."""
    found = FENCE.finditer((CHECKOUT / "docs" / page).read_text())
    return [Block(block["language"], block["title"], textwrap.dedent(block["text"])) for block in found]


def files(page: str) -> dict[str, str]:
    """A page's files, by name."""
    return {block.title: block.text for block in read(page) if block.title}


def follow(
    blocks: list[Block], directory: Path, replaced: dict[str, str], env: dict[str, str], typed: str = ""
) -> list[tuple[str, str]]:
    """Save the files and run the commands, in one shell and in the page's order; the first failure ends it.

    Args:
        blocks: What to follow.
        directory: Where the reader stands.
        replaced: What is written differently on this machine, such as an address; an empty text leaves a line out.
        env: The environment.
        typed: What the reader types when a program asks.

    Returns:
        For each text block what it promises, and what the commands before it printed.
    """
    script = ["set -euo pipefail"]
    for block in blocks:
        if block.title:
            (directory / block.title).write_text(_replaced(block.text, replaced))
        elif block.language == "sh":
            script += [_replaced(block.text, replaced), f"echo; echo {shlex.quote(DONE)}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=directory,
        env={**env, "PATH": path, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        input=typed,
        start_new_session=True,  # no terminal, so that a program that asks for a secret reads what was typed
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return _promises(blocks, done.stdout.split(DONE))


def _promises(blocks: list[Block], printed: list[str]) -> list[tuple[str, str]]:
    promises = []
    commands = 0
    for block in blocks:
        if block.language == "sh":
            commands += 1
        elif block.language == "text" and commands:
            promises.append((block.text, printed[commands - 1]))
    return promises


def _replaced(text: str, replaced: dict[str, str]) -> str:
    for there, here in replaced.items():
        text = text.replace(there, here)
    return text


def prints(promised: str, printed: str) -> bool:
    """Whether commands print what is promised; `...` stands for anything, and blanks and line breaks are alike."""
    how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(promised, printed.strip() + "\n", how)
