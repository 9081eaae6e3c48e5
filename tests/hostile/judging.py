"""What is asked of every outcome: it comes in time, says what is wrong plainly, and shows no secret."""

from __future__ import annotations

import re
import traceback
from typing import Any

from tests.hostile.liar import FORMS

LONGEST_SECONDS = 60.0


def shown(result: Any) -> str:
    """Everything that a log, a state or a person can see of a result or an error."""
    if isinstance(result, BaseException):
        return "".join(traceback.format_exception(result)) + repr(result) + repr(vars(result))
    return f"{result!r}{result}"


def leaks(text: str) -> list[str]:
    """The secrets in a text."""
    return [form for form in FORMS if form in text]


def is_plain(error: BaseException) -> bool:
    """Return whether an error's text is one or two sentences on one line."""
    text = str(error)
    return text.isprintable() and text.endswith(".") and len(re.findall(r"\.(?: |$)", text)) <= 2 and len(text) < 600
