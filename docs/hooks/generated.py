"""Parts of pages that are made from the project's files when the documentation is built, so that they cannot grow old.

A page asks for one by a line such as `{{ commands }}` or `{{ fields tasks.rotation.Rotation }}`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import griffe

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^([a-z]+):.*## (.*)$", re.MULTILINE)
SECTION = re.compile(r"^# --- (.*) ---$")
PLACEHOLDER = re.compile(r"^\{\{ (\w+)((?: [\w.]+)*) \}\}$", re.MULTILINE)


def commands() -> str:
    """Tell the commands of the Makefile.

    Returns:
        A table in Markdown.
    """
    rows = COMMAND.findall((CHECKOUT / "Makefile").read_text())
    return _table(("command", "what it does"), [(f"`make {name}`", what) for name, what in rows])


def flows() -> str:
    """Ask mkdocstrings for every flow that the package exports.

    Returns:
        A directive for each flow, in the order of their names.
    """
    exported = ast.parse((CHECKOUT / "flows" / "__init__.py").read_text())
    imports = [node for node in exported.body if isinstance(node, ast.ImportFrom)]
    found = [f"{node.module}.{name.name}" for node in imports for name in node.names]
    return "\n".join(f"::: {path}\n" for path in found if path.startswith("flows."))


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


def fields(path: str) -> str:
    """Tell the fields of a pydantic model, as the dashboard's form does; the code is read and not run.

    Args:
        path: The class, with its module.

    Returns:
        A table in Markdown.
    """
    module, _, name = path.rpartition(".")
    loaded = griffe.load(module, search_paths=[CHECKOUT], allow_inspection=False)
    rows = [row for attribute in loaded[name].attributes.values() if (row := _field(attribute, loaded))]
    return _table(("field", "type", "default", "description"), rows)


def _field(attribute: griffe.Attribute, module: Any) -> tuple[str, ...] | None:
    call = attribute.value
    if not isinstance(call, griffe.ExprCall) or str(call.function) != "Field":
        return None
    said = {part.name: str(part.value) for part in call.arguments if isinstance(part, griffe.ExprKeyword)}
    default = said.get("default", said.get("default_factory"))
    if default in module.attributes:
        default = str(module[default].value)
    kind = ast.unparse(_Plain(module).visit(ast.parse(str(attribute.annotation), mode="eval")))
    description = ast.literal_eval(said["description"])
    return f"`{attribute.name}`", f"`{kind}`", f"`{default}`" if default else "required", description


class _Plain(ast.NodeTransformer):
    """Takes what only the code needs out of a type: `Annotated[str, ...]`, or a name for it, becomes `str`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        meant = self._module.attributes.get(node.id)
        return self.visit(ast.parse(str(meant.value), mode="eval").body) if meant is not None else node


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS: dict[str, Callable[..., str]] = {"commands": commands, "fields": fields, "flows": flows, "settings": settings}


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Put the parts in, where a page asks for them; called by MkDocs for each page.

    Args:
        markdown: The page.
        **_context: What else MkDocs tells.

    Returns:
        The page with its parts.

    Raises:
        KeyError: The page asks for a part that does not exist.
    """
    return PLACEHOLDER.sub(lambda found: PARTS[found[1]](*found[2].split()), markdown)
