"""The keys of artifacts: no artifact replaces another one, whatever names the rotations have."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from prefect.types.names import ArtifactKey
from pydantic import TypeAdapter

from flows.show.overview import OVERVIEW
from sandbox.stack import CHECKOUT
from tests.test_packages import modules

WRITERS = {"show_markdown", "show_table", "acreate_markdown_artifact", "acreate_table_artifact", "ArtifactCreate"}
NAME = "<name>"
DOCUMENTED = set(
    re.findall(r"^\| artifact `([^`]+)`", (CHECKOUT / "docs/reference/flows.md").read_text(), flags=re.MULTILINE)
)


def key_of(call: ast.Call, module: str) -> str:
    """Return the key that a call writes, with a placeholder for a name."""
    key = next((each.value for each in call.keywords if each.arg == "key"), None) or call.args[0]
    if isinstance(key, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else NAME for each in key.values)
    code: Any = importlib.import_module(module)
    if isinstance(key, ast.Call) and isinstance(key.func, ast.Name):
        return str(getattr(code, key.func.id)(NAME))
    assert isinstance(key, ast.Name), ast.dump(key)
    return str(getattr(code, key.id))


def written() -> Iterator[str]:
    """Yield the key of each artifact that the code writes; the overview is written by a separate request."""
    yield OVERVIEW
    for module, source in modules():
        for node in ast.walk(ast.parse(source)):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WRITERS
            if named and module != "flows.show.artifacts":
                assert isinstance(node, ast.Call)
                yield key_of(node, module)


def test_every_artifact_is_documented() -> None:
    """A reader finds each artifact's key in the reference."""
    assert set(written()) == {re.sub("<.*>", NAME, key) for key in DOCUMENTED}


@pytest.mark.parametrize(("one", "another"), list(combinations(sorted(set(written())), 2)))
def test_no_two_artifacts_share_a_key(one: str, another: str) -> None:
    """A name may be any words joined by dashes, so it comes last, after words with which no other key begins."""
    fixed, others = one.removesuffix(NAME), another.removesuffix(NAME)

    assert NAME not in fixed + others
    assert not (one.endswith(NAME) and others.startswith(fixed))
    assert not (another.endswith(NAME) and fixed.startswith(others))


@pytest.mark.parametrize("key", sorted(set(written())))
def test_prefect_accepts_each_key(key: str) -> None:
    """Prefect allows lowercase letters, digits and dashes."""
    assert TypeAdapter(ArtifactKey).validate_python(key.replace(NAME, "checkout-2"))
