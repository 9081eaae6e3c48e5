"""The checks of the pages detect a failing command and a wrong output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.stack import CHECKOUT
from tests.docs.pages import Block, follow, prints, read


@pytest.mark.parametrize(
    ("promised", "printed", "kept"),
    [
        ("not-yet-rotated\n", "\nnot-yet-rotated\n", True),
        ("...\nCompleted.\n", "one\ntwo\nCompleted.\n", True),
        ("sk-or-v1-...\n", "not-yet-rotated\n", False),
        ("Completed.\n", "Completed.\nand more\n", False),
    ],
)
def test_a_broken_promise_is_noticed(promised: str, printed: str, kept: bool) -> None:
    """The output must be what the page promises, except where the page leaves it open."""
    assert prints(promised, printed) is kept


def test_a_command_that_fails_ends_it(tmp_path: Path) -> None:
    """A failing command in the middle of a page must not go unnoticed."""
    blocks = [Block("sh", None, "false\n"), Block("sh", None, "true\n")]

    with pytest.raises(AssertionError):
        follow(blocks, tmp_path, {}, dict(os.environ))


def test_each_promise_is_held_against_the_commands_before_it(tmp_path: Path) -> None:
    """Files are saved before the commands run, and each text block belongs to the commands above it."""
    blocks = [
        Block("yaml", "a.yaml", "one\n"),
        Block("sh", None, "cat a.yaml\n"),
        Block("text", None, "one\n"),
        Block("sh", None, "echo two\n"),
        Block("text", None, "two\n"),
    ]

    promises = follow(blocks, tmp_path, {"one": "1"}, dict(os.environ))

    assert [(promised.strip(), printed.strip()) for promised, printed in promises] == [("one", "1"), ("two", "two")]


@pytest.mark.parametrize("page", sorted(file.name for file in (CHECKOUT / "docs" / "how-to").glob("*.md")))
def test_a_command_that_no_test_runs_is_said_to_be_so(page: str) -> None:
    """A page with commands that no test runs must say what was tried."""
    untried = [block for block in read(f"how-to/{page}") if block.language == "bash"]

    assert not untried or "tried" in (CHECKOUT / "docs" / "how-to" / page).read_text()
