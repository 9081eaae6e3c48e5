"""Error messages for invalid settings of a rotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blocks.errors import ConfigurationError
from blocks.foreign import harmless
from tasks.model.durations import EXPECTED

MAX_SHOWN_FIELD = 40
"""How many characters of a field's name a message quotes: a caller can send any name."""
MAX_SHOWN_ERRORS = 12
"""How many invalid fields a message names."""

_AMOUNT = "must be an amount in US dollars, not negative, with at most 6 decimals"
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "there is no such setting",
    "string_type": "must be text",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": _AMOUNT,
    "finite_number": _AMOUNT,
    "model_type": "must be an object with settings",
    "model_attributes_type": "must be an object with settings",
}
_KINDS = {"decimal_": _AMOUNT, "time_delta_": EXPECTED}


def refusal(errors: Sequence[Mapping[str, Any]]) -> ConfigurationError:
    """Return an error with a sentence for each invalid field; its `causes` are one error for each.

    Args:
        errors: Pydantic's errors, without the input, which a message must not repeat.
    """
    each = [ConfigurationError(f"{_field(error)}: {_sentence(error)}. Nothing was created.") for error in errors]
    return ConfigurationError.combine(each[:MAX_SHOWN_ERRORS])


def _field(error: Mapping[str, Any]) -> str:
    return ".".join(["rotation", *(harmless(str(part), MAX_SHOWN_FIELD) for part in error["loc"])])


def _sentence(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind == "literal_error":
        return f"must be {error['ctx']['expected'].replace(chr(39), '')}"
    ours = next((words for start, words in _KINDS.items() if kind.startswith(start)), None)
    return _WORDS.get(kind) or ours or str(error["msg"]).removeprefix("Value error, ")
