"""The page for the person on call quotes what runs really say."""

from __future__ import annotations

import ast
import re

import pytest

from sandbox.stack import CHECKOUT

PAGE = (CHECKOUT / "docs" / "how-to" / "troubleshooting.md").read_text()
QUOTED = sorted({*re.findall(r'^## "(.*)"$', PAGE, re.MULTILINE), *re.findall(r'"([^"\n]*…[^"\n]*)"', PAGE)})
OPEN = "…"
FILLED_IN = re.compile(r"\d+|\bpublish\b")
"""What a message does not spell out itself: numbers, and the step that failed."""
LOSES_A_LEDGER = re.compile(
    r"\b(delete|remove|replace|overwrite) (it|the ledger|(the|its) (prefect )?variable)\b|earlier value", re.IGNORECASE
)
"""Advice after which live keys are known to nobody."""


def said() -> list[str]:
    """Every text in the code but docstrings, with `…` for what is filled in."""
    trees = [
        ast.parse(file.read_text()) for part in ("blocks", "tasks", "flows") for file in (CHECKOUT / part).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    nodes = [node for node in nodes if id(node) not in docstrings]
    whole = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = ["".join(_spelled(part) for part in node.values) for node in nodes if isinstance(node, ast.JoinedStr)]
    return whole + filled


def _spelled(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else OPEN


TEXTS = said()


@pytest.mark.parametrize("sentence", QUOTED)
def test_each_quoted_sentence_is_one_that_the_code_says(sentence: str) -> None:
    """Each part of it stands in a text of the code, so that somebody who searches the page for a message finds it."""
    parts = [part.strip() for part in sentence.split(OPEN) if part.strip(" .")]

    patterns = [FILLED_IN.sub(lambda found: f"(?:{found[0]}|{OPEN})", re.escape(part)) for part in parts]
    assert parts
    assert [
        part for part, form in zip(parts, patterns, strict=True) if not any(re.search(form, text) for text in TEXTS)
    ] == []


def test_the_page_is_found_to_quote() -> None:
    """A page that was written in another form would pass the test above without being looked at."""
    assert len(QUOTED) >= 15


def test_no_message_advises_to_delete_or_replace_a_ledger() -> None:
    """Whoever followed such advice would lose a live key for good."""
    about_ledgers = [text for text in TEXTS if re.search("ledger", text, re.IGNORECASE)]

    assert any("upgrade this worker" in text for text in about_ledgers)
    assert [text for text in about_ledgers if LOSES_A_LEDGER.search(text)] == []


def test_the_advice_of_an_earlier_version_is_found() -> None:
    """What the message of an unreadable ledger once said is what the test above looks for."""
    assert LOSES_A_LEDGER.search("is not a readable ledger: put an earlier value back from its events, or delete it")
