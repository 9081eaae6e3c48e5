"""Tables that are made from the project's files when the documentation is built, so that they cannot grow old.

A page asks for one by a line such as `{{ commands }}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^([a-z]+):.*## (.*)$", re.MULTILINE)
SECTION = re.compile(r"^# --- (.*) ---$")
PLACEHOLDER = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)


def commands() -> str:
    """Tell the commands of the Makefile.

    Returns:
        A table in Markdown.
    """
    rows = COMMAND.findall((CHECKOUT / "Makefile").read_text())
    return _table(("command", "what it does"), [(f"`make {name}`", what) for name, what in rows])


def settings() -> str:
    """Tell the settings of `prefect.env`, each with the comment above it.

    Returns:
        A table in Markdown for each section of the file.
    """
    parts: list[str] = []
    why: list[str] = []
    rows: list[tuple[str, ...]] = []
    section = ""
    for line in [*(CHECKOUT / "prefect.env").read_text().splitlines(), "# --- end ---"]:
        if heading := SECTION.match(line):
            if rows:
                parts += [f"## {section.capitalize()}", "", _table(("setting", "value", "why"), rows), ""]
            section, rows, why = heading[1], [], []
        elif line.startswith("#"):
            why = [*why, line.lstrip("# ")] if not rows or why else [line.lstrip("# ")]
        elif "=" in line:
            name, _, value = line.partition("=")
            rows.append((f"`{name}`", f"`{value}`", " ".join(why) or "as above"))
            why = []
    return "\n".join(parts)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {"commands": commands, "settings": settings}


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Put the tables in, where a page asks for them; called by MkDocs for each page.

    Args:
        markdown: The page.
        **_context: What else MkDocs tells.

    Returns:
        The page with its tables.

    Raises:
        KeyError: The page asks for a table that does not exist.
    """
    return PLACEHOLDER.sub(lambda found: TABLES[found[1]](), markdown)
