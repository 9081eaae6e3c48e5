"""What the demo leaves a person with."""

from __future__ import annotations

from rich.console import Console

from sandbox.demo import Consumer, show
from sandbox.openrouter_account import OpenRouterSandbox


def test_the_demo_ends_with_what_its_words_mean_and_where_to_go_on() -> None:
    """One line each, after the table, in a terminal of usual width."""
    console = Console(record=True, width=100)

    show(console, OpenRouterSandbox(), Consumer("http://127.0.0.1"), 1.0)

    first, second, last = console.export_text().rstrip().splitlines()[-3:]
    assert first.startswith("superseded: ")
    assert second.startswith("overlap: ")
    assert "make up" in last
    assert "docs/tutorial/first-rotation.md" in last
