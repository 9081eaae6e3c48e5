"""The parts of OpenRouter's responses that only the client reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from blocks.errors import UnexpectedAnswerError
from blocks.http import Meaning
from blocks.openrouter.keys import Answer, Identifier

M = TypeVar("M", bound=BaseModel)


class Assignment(Answer):
    """The assignment of a guardrail to a key."""

    key_hash: Identifier
    guardrail_id: Identifier


class Assigned(Answer):
    """How many keys were assigned."""

    assigned_count: int = Field(strict=True)


class Unassigned(Answer):
    """How many keys were unassigned."""

    unassigned_count: int = Field(strict=True, ge=0, le=1)


class Page(Answer):
    """One page of a list."""

    data: list[Any]
    total_count: int | None = Field(default=None, strict=True, ge=0)


def parse(model: type[M], data: object, doing: str) -> M:
    """Validate a response; `UnexpectedAnswerError` names the missing or malformed fields, without quoting values."""
    # `from None`, because pydantic's text quotes the data.
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "data" for e in error.errors(include_input=False)}))
        raise UnexpectedAnswerError(
            f"OpenRouter's answer is not as documented while {doing}; missing or malformed: {fields}."
        ) from None


def meaning_of(status: int, answer: Mapping[str, Any]) -> Meaning | None:
    """Return the meaning of an error response; `None` for the usual meaning of its status."""
    error = answer.get("error")
    if status not in _NEEDS_PROOF or (isinstance(error, dict) and error.get("code") == status):
        return None
    return UnexpectedAnswerError, f"or a proxy in front of it answered {status}, but not in OpenRouter's format,"


_NEEDS_PROOF = frozenset({402, 403, 404})
"""Statuses that say that a key is deleted, or is valid but may not spend. Proxies send them as well."""
