"""Generate parts of the pages from the project's files when the documentation is built, so that they stay up to date.

A page includes one by a line such as `{{ commands }}` or `{{ fields tasks.model.rotation.Rotation }}`.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import griffe

FILLED = "…"
CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^([a-z]+):.*## (.*)$", re.MULTILINE)
SECTION = re.compile(r"^# --- (.*) ---$")
WORDS = {"str": "text", "SecretStr": "secret", "float": "number", "Decimal": "number", "timedelta": "duration"}
"""The name of a type where a person writes its values, in YAML or in a form."""
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DRAWINGS = CHECKOUT / "docs" / "images" / "diagrams"
"""The pictures of the diagrams, which a reader sees without a network; `tests/browser/test_diagrams.py` draws them."""
PLACEHOLDER = re.compile(r"^\{\{ (\w+)((?: [\w./]+)*) \}\}$", re.MULTILINE)
MESSAGES = re.compile(r"^<!-- messages ([\w ]+) -->\n\n.*?\n\n<!-- end -->$", re.MULTILINE | re.DOTALL)
"""A list of messages, which stands in its page: a failed run leads to the file in the checkout, too."""
TROUBLESHOOTING = CHECKOUT / "docs" / "how-to" / "troubleshooting.md"


def commands() -> str:
    """Return a table, in Markdown, of the commands in the Makefile."""
    rows = COMMAND.findall((CHECKOUT / "Makefile").read_text())
    return _table(("command", "what it does"), [(f"`make {name}`", what) for name, what in rows])


def flows() -> str:
    """Return a section, in Markdown, for each flow that the package exports, with its parameters."""
    exported = ast.parse((CHECKOUT / "flows" / "__init__.py").read_text())
    imports = [node for node in exported.body if isinstance(node, ast.ImportFrom)]
    found = [f"{node.module}.{name.name}" for node in imports for name in node.names]
    return "\n\n".join(_flow(_code()[path]) for path in found if path.startswith("flows."))


def _flow(function: griffe.Function) -> str:
    name = ast.literal_eval(str(function.decorators[0].value.arguments[0]))
    text, *sections = function.docstring.parse("google") if function.docstring else []
    described = {section.kind: section.value for section in sections}
    rows = [
        _row(parameter.name, parameter.annotation, parameter.default, function.module, described=each.description)
        for parameter, each in zip(
            function.parameters, described.get(griffe.DocstringSectionKind.parameters, ()), strict=True
        )
    ]
    result = described[griffe.DocstringSectionKind.returns][0].description
    table = _table(("parameter", "type", "default", "description"), rows) if rows else "It has no parameters."
    return f"## {name}\n\n`{function.module.path}:{function.name}`\n\n{text.value}\n\n{table}\n\nIt returns: {result}"


def states() -> str:
    """Return a table, in Markdown, of the states of a key and the transitions to each."""
    module = _code()["tasks.model.states"]
    named = {f"KeyState.{name}": ast.literal_eval(str(each.value)) for name, each in _members(module["KeyState"])}
    ways: Any = ast.parse(str(module["TRANSITIONS"].value), mode="eval").body
    came: dict[str, list[str]] = {name: [] for name in named.values()}
    for step, why in zip(ways.keys, ways.values, strict=True):
        before, after = (named.get(ast.unparse(state)) for state in step.elts)
        came[after].append((f"from `{before}`: " if before else "") + ast.literal_eval(why))
    return _table(("state", "transitions to it"), [(f"`{name}`", "<br>".join(how)) for name, how in came.items()])


def findings() -> str:
    """Return a table, in Markdown, of the situations that a run can find when it starts."""
    found = [ast.literal_eval(str(each.value)) for _, each in _members(_code()["tasks.model.decisions.Situation"])]
    return _table(("situation",), [(words,) for words in found])


def messages(*errors: str) -> str:
    """Return a list, in Markdown, of the messages of error classes, with `…` for what a message fills in.

    Args:
        *errors: The classes. A `ValueError` of the rotation's settings becomes a `ConfigurationError`.
    """
    files = [file for package in ("blocks", "tasks", "flows") for file in sorted((CHECKOUT / package).rglob("*.py"))]
    # A message that is filled in as a whole says nothing here.
    found = [said for file in files for kind, said in _raised(file) if kind in errors and re.search("[a-z]", said)]
    return (
        "\n".join(f"- `` {said} ``" for said in dict.fromkeys(found))
        or f"- `` {FILLED} answered {FILLED} while {FILLED}. ``"
    )


def with_messages(page: str) -> str:
    """Return a page with its lists of messages as the code has them now.

    Args:
        page: The page, with lists between `<!-- messages <error classes> -->` and `<!-- end -->`.
    """
    return MESSAGES.sub(
        lambda found: f"<!-- messages {found[1]} -->\n\n{messages(*found[1].split())}\n\n<!-- end -->", page
    )


@functools.cache
def _raised(file: Path) -> tuple[tuple[str, str], ...]:
    return tuple(_messages_in(file))


def _messages_in(file: Path) -> Iterator[tuple[str, str]]:
    is_setting = file.is_relative_to(CHECKOUT / "tasks")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and node.args and (said := _text(node.args[0])):
            kind = ast.unparse(node.func)
            yield ("ConfigurationError", f"{FILLED}: {said}") if is_setting and kind == "ValueError" else (kind, said)
        elif isinstance(node, ast.Tuple) and len(node.elts) > 1 and (said := _text(node.elts[-1])):
            # The meaning of an answer: the error, and the words in the middle of its sentence.
            yield ast.unparse(node.elts[-2]), f"{FILLED} {said} while {FILLED}."


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or FILLED for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _members(enum: Any) -> list[tuple[str, griffe.Attribute]]:
    return [(name, each) for name, each in enum.attributes.items() if name.isupper()]


def settings(file: str) -> str:
    """Return a table, in Markdown, for each section of a file of settings, each setting with the comment above it.

    Args:
        file: The file, such as `prefect.env`.
    """
    parts: list[str] = []
    why: list[str] = []
    rows: list[tuple[str, ...]] = []
    section = ""
    for line in [*(CHECKOUT / file).read_text().splitlines(), "# --- end ---"]:
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
    """Return a table, in Markdown, of the fields of a pydantic model; the code is read and not run.

    Args:
        path: The class, with its module.
    """
    rows = [row for attribute in _code()[path].attributes.values() if (row := _field(attribute))]
    return _table(("field", "type", "default", "description"), rows)


@functools.cache
def _code() -> Any:
    loader = griffe.GriffeLoader(search_paths=[CHECKOUT], allow_inspection=False)
    for package in ("blocks", "tasks", "flows"):
        loader.load(package)
    loader.resolve_aliases(external=False)
    return loader.modules_collection


def _said(call: Any) -> dict[str, str]:
    return {part.name: str(part.value) for part in call.arguments if isinstance(part, griffe.ExprKeyword)}


def _field(attribute: griffe.Attribute) -> tuple[str, ...] | None:
    call = attribute.value
    if not isinstance(call, griffe.ExprCall) or str(call.function) != "Field":
        return None
    said = _said(call)
    default = said.get("default", said.get("default_factory"))
    described = ast.literal_eval(said["description"])
    return _row(attribute.name, attribute.annotation, default, attribute.module, described=described)


def _row(name: str, annotation: Any, default: Any, module: Any, *, described: str) -> tuple[str, ...]:
    kind = ast.unparse(_Plain(module).visit(ast.parse(str(annotation), mode="eval")))
    return (
        f"`{name}`",
        f"`{kind}`",
        "required" if default is None else _shown(str(default), module),
        " ".join(described.split()),
    )


def _shown(default: str, module: Any) -> str:
    """Return a default as a person writes it."""
    if default in module.attributes:
        return _shown(str(module[default].value), module)
    call = ast.parse(default, mode="eval").body
    if not isinstance(call, ast.Call):
        return _value(ast.literal_eval(call))
    if ast.unparse(call.func) != "timedelta":
        return "all defaults"
    length = timedelta(*map(ast.literal_eval, call.args), **{a.arg: ast.literal_eval(a.value) for a in call.keywords})
    return f"`{_iso(length)}`"


def _value(value: object) -> str:
    if value is None:
        return "none"
    if value in ("", []):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _iso(length: timedelta) -> str:
    for unit, form in ((timedelta(days=1), "P{}D"), (timedelta(hours=1), "PT{}H"), (timedelta(seconds=1), "PT{}S")):
        if length and not length % unit:
            return form.format(length // unit)
    return "PT0S"


class _Plain(ast.NodeTransformer):
    """Rewrite a type for those who fill it in: `Annotated[timedelta, ...]`, or a name for it, becomes `duration`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])
        if ast.unparse(node.value) == "Literal":
            return ast.Name(" | ".join(map(str, ast.literal_eval(node.slice))))
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Name("none") if node.value is None else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        meant = self._module.members.get(node.id)
        if meant is None or (meant.is_alias and not meant.resolved) or not meant.is_attribute:
            return ast.Name(WORDS.get(node.id, node.id))
        meant = meant.final_target if meant.is_alias else meant
        return _Plain(meant.module).visit(ast.parse(str(meant.value), mode="eval").body)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def drawing(text: str) -> Path:
    """Return the picture of a diagram; a changed diagram has another name, and no picture until it is drawn.

    Args:
        text: What mermaid draws.
    """
    return DRAWINGS / f"{sha256(text.strip().encode()).hexdigest()[:12]}.svg"


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part for part in (commands, fields, findings, flows, settings, states)
}


def on_page_markdown(markdown: str, page: Any = None, **_context: Any) -> str:
    """Replace each placeholder of a page by its part, and each diagram by its picture; MkDocs calls this for each page.

    Args:
        markdown: The page.
        page: The page's place, as MkDocs knows it.
        **_context: Other arguments of the MkDocs event.

    Returns:
        The page with its parts and pictures.

    Raises:
        KeyError: A part does not exist.
    """
    up = "../" * page.file.src_uri.count("/") if page else ""
    pictures = DIAGRAM.sub(
        lambda found: f"![Diagram]({up}{drawing(found[1]).relative_to(CHECKOUT / 'docs')}){{ .diagram }}", markdown
    )
    return PLACEHOLDER.sub(lambda found: PARTS[found[1]](*found[2].split()), pictures)


if __name__ == "__main__":
    TROUBLESHOOTING.write_text(with_messages(TROUBLESHOOTING.read_text()))
