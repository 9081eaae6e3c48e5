"""JSON whose numbers are read and written digit for digit, as no float could hold them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

import orjson

MAX_INTEGER_DIGITS = 18
"""The length of the integers that orjson can write; longer ones, and -0, are `Decimal`."""


def decoded(text: bytes) -> Any:
    """Return a JSON document; numbers with a fraction or an exponent, and long integers, are `Decimal`.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or has a number beyond all bounds.
    """
    try:
        return json.loads(text, parse_float=Decimal, parse_int=_integer, parse_constant=_no_number)
    except (ArithmeticError, RecursionError):
        raise ValueError from None


def encoded(value: Any) -> bytes:
    """Return a value as JSON.

    Raises:
        ValueError: JSON cannot express it, or it is nested too deeply.
    """
    try:
        return orjson.dumps(value, default=_number)
    except orjson.JSONEncodeError:
        raise ValueError from None


def _integer(digits: str) -> int | Decimal:
    return Decimal(digits) if len(digits) > MAX_INTEGER_DIGITS or digits == "-0" else int(digits)


def _no_number(_name: str) -> NoReturn:
    # Python accepts NaN and Infinity, which JSON does not have.
    raise ValueError


def _number(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value))
    raise TypeError
