"""Values that people type, and blocks created from them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

CANARY = "canary-5f3a9c"
"""A part of the input that no refusal may quote."""
NASTY = [
    "",
    " ",
    ".",
    "..",
    "../..",
    "../../sys/policy/root",
    "a/../b",
    "..%2f..%2fsys",
    "%2e%2e",
    "%2e%2e/%2e%2e",
    "%00",
    "100%",
    "a%0d%0aX-Vault-Token: b",
    "a\r\nX-Vault-Token: b",
    "a\nb",
    "a\x00b",
    "a\x7fb",
    "a\u2028b",
    "a\u202eb",
    "\ufeffa",
    "\ud800",
    "сheckout",  # noqa: RUF001 - the first letter is Cyrillic
    "ｃｈｅｃｋｏｕｔ",  # noqa: RUF001 - full-width letters
    "．．／．．",  # noqa: RUF001 - full-width dots and a full-width slash
    "a?b=c",
    "a#b",
    "a;b",
    "a\\..\\b",
    "a//b",
    "/a/",
    " a ",
    "\u00a0a",
    "*",
    "+",
    "{{ key }}",
    "{path}",
    "$(id)",
    "'; DROP TABLE keys; --",
    "é",
    "e\u0301",
    "x" * 10_000,
    "../" * 3_000,
]
typed = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=40),
    st.text("./%\\ ab\n\x00", max_size=12),
    st.lists(st.sampled_from(NASTY), min_size=2, max_size=3).map("".join),
)
"""Input from a person, or from an attacker."""


def make(kind: type[Any], **fields: Any) -> Any | None:
    """Create a block, or verify that its refusal names a field and quotes nothing."""
    refused: list[ValidationError] = []
    try:
        return kind(**fields)
    except ValidationError as error:
        refused.append(error)
    [refusal] = refused
    places = [entry["loc"] for entry in refusal.errors(include_input=False, include_context=False)]
    assert all(place and place[0] in kind.model_fields for place in places)
    assert CANARY not in f"{refusal}{refusal!r}"
    return None
