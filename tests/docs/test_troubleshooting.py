"""The troubleshooting page quotes the actual messages of the code, and has an entry for each class of errors."""

from __future__ import annotations

import ast
import re
import runpy
from collections import defaultdict
from typing import Any

import pytest

from blocks.errors import KeyRotationError
from flows.show.sentences import address, failed
from sandbox.stack import CHECKOUT

PAGE = (CHECKOUT / "docs" / "how-to" / "troubleshooting.md").read_text()
generated: dict[str, Any] = runpy.run_path(str(CHECKOUT / "docs" / "hooks" / "generated.py"))
QUOTED = sorted({*re.findall(r'^#{2,3} "(.*)"$', PAGE, re.MULTILINE), *re.findall(r'"([^"\n]*…[^"\n]*)"', PAGE)})
OPEN = "…"
TREES = [
    ast.parse(file.read_text()) for part in ("blocks", "tasks", "flows") for file in (CHECKOUT / part).rglob("*.py")
]
FILLED_IN = re.compile(r"\d+|\bpublish\b")
"""The parts of a quoted message that its template does not contain: numbers, and the step that failed."""
LOSES_A_LEDGER = re.compile(
    r"\b(delete|remove|replace|overwrite) (it|the ledger|(the|its) (prefect )?variable)\b|earlier value", re.IGNORECASE
)
"""Advice that would leave live keys without a ledger."""


def all_classes(error: type[KeyRotationError]) -> list[type[KeyRotationError]]:
    """Return a class and all its subclasses."""
    return [error, *(found for each in error.__subclasses__() for found in all_classes(each))]


ERRORS = all_classes(KeyRotationError)
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))
"""The page's entries, by heading."""


def said() -> list[str]:
    """Return every string in the code except docstrings, with `…` for interpolated values."""
    nodes = [node for tree in TREES for node in ast.walk(tree)]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    nodes = [node for node in nodes if id(node) not in docstrings]
    whole = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = [text for node in nodes if isinstance(node, ast.JoinedStr) for text in _texts(node)]
    return whole + filled


def _texts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.JoinedStr):
        return ["".join(_spelled(part) for part in node.values)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _spelled(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else OPEN


def messages() -> dict[str, list[str]]:
    """Return the messages with which the code makes each object, by the name of its class."""
    found: dict[str, list[str]] = defaultdict(list)
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                found[ast.unparse(node.func)] += [text for text in _texts(node.args[0]) if re.search("[a-z]", text)]
    return found


TEXTS = said()
MESSAGES = messages()


@pytest.mark.parametrize("sentence", QUOTED)
def test_each_quoted_sentence_is_one_that_the_code_says(sentence: str) -> None:
    """Every part of the quote is a text in the code, so a reader who searches for a message finds it."""
    parts = [part.strip() for part in sentence.split(OPEN) if part.strip(" .")]

    patterns = [FILLED_IN.sub(lambda found: f"(?:{found[0]}|{OPEN})", re.escape(part)) for part in parts]
    assert parts
    assert [
        part for part, form in zip(parts, patterns, strict=True) if not any(re.search(form, text) for text in TEXTS)
    ] == []


@pytest.mark.parametrize("error", ERRORS)
def test_a_failed_run_ends_with_the_address_of_an_entry_on_the_page(error: type[KeyRotationError]) -> None:
    """Once, the most frequent failure had no entry at all, although the page advised to look its message up."""
    page, _, anchor = failed(error("It failed."), "publish", None).rpartition(" Help: ")[2].partition("#")

    assert (CHECKOUT / page).read_text() == PAGE
    assert [heading.lower().replace(" ", "-") for heading in SECTIONS if heading == error.entry] == [anchor]


def test_each_class_of_errors_has_an_entry_of_its_own() -> None:
    """Otherwise different failures would share one advice."""
    public = [error for error in ERRORS if error.__module__ == KeyRotationError.__module__]

    assert len({address(error.entry) for error in public}) == len(public)


@pytest.mark.parametrize("error", ERRORS)
def test_each_message_of_an_error_stands_in_its_entry(error: type[KeyRotationError]) -> None:
    """Searching the page for a message leads to the entry to which the message's link leads."""
    assert [message for message in MESSAGES[error.__name__] if message not in SECTIONS[error.entry]] == []


def test_the_lists_of_messages_are_those_of_the_code() -> None:
    """The lists are stored in the file, because a failed run's message may link to the file in a checkout."""
    assert generated["with_messages"](PAGE) == PAGE, "run: python docs/hooks/generated.py"


def test_messages_are_found_in_the_code() -> None:
    """Without any message, the tests above would pass without checking the page."""
    assert sum(section.count("- ``") for section in SECTIONS.values()) > 100


def test_the_page_is_found_to_quote() -> None:
    """If the page quoted messages in another format, the tests above would pass without checking anything."""
    assert len(QUOTED) >= 15


def test_no_message_advises_to_delete_or_replace_a_ledger() -> None:
    """That advice would lose track of live keys permanently."""
    about_ledgers = [text for text in TEXTS if re.search("ledger", text, re.IGNORECASE)]

    assert any("upgrade this worker" in text for text in about_ledgers)
    assert [text for text in about_ledgers if LOSES_A_LEDGER.search(text)] == []


def test_the_advice_of_an_earlier_version_is_found() -> None:
    """An earlier version's message gave such advice; the pattern must match it."""
    assert LOSES_A_LEDGER.search("is not a readable ledger: put an earlier value back from its events, or delete it")
