"""Parse the commands, programs and files of a page, and run its commands as a reader would.

Blocks marked `sh` are run by a test; commands that no test can run are marked `bash`, and the page says so.
`test_every_block.py` verifies that for all pages.
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
        language: `sh` for commands, `text` for the output of the commands before it, anything else for a file.
        title: The file's name, if the page gives one.
        text: Its content.
    """

    language: str
    title: str | None
    text: str


def read(page: str) -> list[Block]:
    """Return a page's blocks, in order."""
    found = FENCE.finditer((CHECKOUT / "docs" / page).read_text())
    return [Block(block["language"], block["title"], textwrap.dedent(block["text"])) for block in found]


def files(page: str) -> dict[str, str]:
    """Return a page's files, by name."""
    return {block.title: block.text for block in read(page) if block.title}


def follow(
    blocks: list[Block], directory: Path, replaced: dict[str, str], env: dict[str, str], typed: str = ""
) -> list[tuple[str, str]]:
    """Save the files and run the commands, in one shell and in the page's order, until the first failure.

    Args:
        blocks: The blocks to follow.
        directory: The reader's working directory.
        replaced: Texts that differ on this machine, such as an address; an empty replacement drops the line.
        env: The environment variables.
        typed: The input to programs that ask for it.

    Returns:
        For each text block the promised output, and that of the commands before it.
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
        start_new_session=True,  # without a terminal, a program that asks for a secret reads its standard input
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
    """Return whether commands print what is promised; `...` stands for any text, and all white space is equal."""
    how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(promised, printed.strip() + "\n", how)
