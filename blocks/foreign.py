"""Show words of strangers, such as the name of an application, in sentences that are read as Markdown or by Slack."""

from __future__ import annotations

import re

from blocks.redaction import redacted

_STAND_INS = str.maketrans(
    {"[": "(", "]": ")", "<": "(", ">": ")", "`": "'", "|": "-", "\\": "-", "*": "-", "~": "-", "@": "(at)"}
)
"""Without these characters no link, image, element, mention, code or further cell of a table can begin or end.

`!` and `(` mean something only beside a bracket, and `&` can make nothing but a character.
"""
_IN_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
"""Where an address is cut in two, because renderers and Slack link those that stand in a text."""
_OUTSIDE_OF_WORDS = re.compile(r"(?<!\w)[_#]+|_+(?!\w)")
"""Inside of a word, as in `my_app` and `C#`, these characters mean nothing."""


def harmless(text: str, longest: int) -> str:
    """Return a stranger's text fit for a sentence of ours: without secrets and markup, on one line.

    Args:
        text: The text. Ordinary names stay as they are.
        longest: How many characters are kept.
    """
    visible = "".join(character for character in " ".join(text.split()) if character.isprintable())
    # The mark of a redaction has brackets, too.
    plain = _IN_ADDRESS.sub(" ", redacted(visible).translate(_STAND_INS))[:longest]
    return _OUTSIDE_OF_WORDS.sub(lambda found: "-" * len(found[0]), plain).strip()
