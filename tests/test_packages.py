"""The packages of the code, and the imports allowed between them: one direction only."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
BLOCKS = {"blocks", "blocks.openrouter", "blocks.vault", "blocks.infisical"}
MODEL = {"tasks.model", "blocks", "blocks.openrouter"}
WORLD = {"tasks.world", "tasks.model"} | BLOCKS
KEY = {"tasks.key"} | WORLD
STEPS = {"tasks"} | KEY
LIFE = {"tasks.life"} | STEPS
AUDIT = {"tasks.audit"} | WORLD
SHOW = {"flows.show"} | LIFE | AUDIT
PACKAGES = {
    "blocks": BLOCKS,
    "blocks.openrouter": {"blocks", "blocks.openrouter"},
    "blocks.vault": {"blocks", "blocks.vault"},
    "blocks.infisical": {"blocks", "blocks.infisical"},
    "tasks.model": MODEL,
    "tasks.world": WORLD,
    "tasks.key": KEY,
    "tasks": STEPS,
    "tasks.life": LIFE,
    "tasks.audit": AUDIT,
    "flows.show": SHOW,
    "flows": {"flows", "automations"} | SHOW,
}
"""Each package, and the packages that it may import."""
MODEL_MAY_IMPORT = {"blocks.errors", "blocks.foreign", "blocks.redaction", "blocks.openrouter.keys"}
"""What the model may import: values and errors of the blocks, but no client."""
MAX_LINES = 400
"""The maximum length of a file."""


def package_of(module: str) -> str:
    """Return the package of a module; a package belongs to itself."""
    return module if module in PACKAGES else module.rpartition(".")[0]


def modules(folder: Path = CHECKOUT) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the source of each module."""
    for top in ("blocks", "tasks", "flows"):
        for file in sorted((folder / top).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file.read_text()


def imports(source: str) -> set[str]:
    """Return every module that a source file imports, including imports inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & _known() or {node.module}
    return found


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(name for name, _ in modules())


def wrong_arrows(name: str, source: str) -> list[str]:
    """Return the imports of a module that violate the allowed dependencies."""
    ours = {module for module in imports(source) if module.partition(".")[0] in {"blocks", "tasks", "flows", "sandbox"}}
    allowed = PACKAGES[package_of(name)]
    wrong = [module for module in ours if package_of(module) not in allowed]
    if package_of(name) == "tasks.model":
        wrong += [module for module in ours if package_of(module) != "tasks.model" and module not in MODEL_MAY_IMPORT]
        wrong += [module for module in imports(source) if module.partition(".")[0] in {"prefect", "httpx", "hvac"}]
    return sorted(f"{name} imports {module}" for module in set(wrong))


def test_every_import_follows_the_arrows() -> None:
    """No module imports from a higher layer, and the model imports no client."""
    assert [arrow for name, source in modules() for arrow in wrong_arrows(name, source)] == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("blocks.errors", "from tasks.model.keys import marker"),
        ("tasks.model.ledger", "from tasks.world.run import Run"),
        ("tasks.model.ledger", "from blocks.openrouter.client import OpenRouterClient"),
        ("tasks.model.ledger", "import httpx"),
        ("tasks.world.run", "from tasks.create import create_key"),
        ("tasks.key.terms", "from tasks import create"),
        ("tasks.create", "from tasks.life.recover import recover"),
        ("tasks.audit.compare", "from tasks.life.due import revoke_what_is_due"),
        ("tasks.life.due", "def late():\n    from flows.rotate import rotate"),
        ("flows.show.sentences", "from flows.runs import open_run"),
        ("flows.rotate", "from sandbox.stack import Stack"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, planted: str) -> None:
    """The check above detects each forbidden import."""
    assert wrong_arrows(module, planted) != []


def test_every_package_says_what_is_in_it() -> None:
    """Every package has a docstring."""
    said = {name: ast.get_docstring(ast.parse(source)) for name, source in modules() if name in PACKAGES}

    assert sorted(said) == sorted(PACKAGES)
    assert [name for name, sentence in said.items() if not sentence] == []


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    """A module that grows longer must be split; this holds for the tests, too."""
    tests = [(str(file.relative_to(CHECKOUT)), file.read_text()) for file in (CHECKOUT / "tests").rglob("*.py")]

    assert len(tests) > 0
    assert [name for name, source in [*modules(), *tests] if source.count("\n") > MAX_LINES] == []
