"""Assess an outcome: its error must be plain, and it must not contain a secret."""

from __future__ import annotations

import re
import traceback
from typing import Any

from tests.hostile.liar import FORMS

LONGEST_SECONDS = 60.0


def shown(result: Any) -> str:
    """Return everything of a result or an error that a log, a state or a person can see."""
    if isinstance(result, BaseException):
        return "".join(traceback.format_exception(result)) + repr(result) + repr(vars(result))
    return f"{result!r}{result}"


def leaks(text: str) -> list[str]:
    """Return the secrets in a text."""
    return [form for form in FORMS if form in text]


def is_plain(error: BaseException) -> bool:
    """Return whether an error's text is one or two sentences on one line."""
    text = str(error)
    return text.isprintable() and text.endswith(".") and len(re.findall(r"\.(?: |$)", text)) <= 2 and len(text) < 600
