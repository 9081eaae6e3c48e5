"""Words of strangers stay words, wherever a sentence with them is read: in the dashboard, in Slack or in a table."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from blocks.foreign import harmless

LONGEST = 60
MARKUP = "[]()<>!|*_#~`\\@&:/.-= \n\r\t\u200b\u202e\u2028ab"
PIECES = (
    "[Press Retry here](https://evil.example/login)",
    "![x](https://evil.example/p.png)",
    "<!channel>",
    "<@U012AB3CD>",
    "@everyone",
    "<img src=x onerror=alert(1)>",
    "<https://evil.example|Prefect>",
    "https:||evil.example",
    "www.evil.example",
    "| --- |",
    "```",
    "&#91;x&#93;(y)",
    f"sk-or-v1-{'5' * 64}",
)
strangers = st.one_of(st.text(), st.text(MARKUP), st.lists(st.sampled_from([*PIECES, *MARKUP])).map("".join))
RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
"""An independent judge of Markdown with HTML, as the dashboard shows it."""
LINKED_BY_ITSELF = re.compile(r"://|\bwww\.|[\w.+-]@\w", re.IGNORECASE)
"""What GitHub's Markdown, the dashboard and Slack make a link of without any brackets."""
MENTION = re.compile(r"<[!@#]|@\w")


def tokens(rendered: list[Token]) -> Iterator[str]:
    """Yield the type of every token, and of those in it."""
    for token in rendered:
        yield token.type
        yield from tokens(token.children or [])


def shape(words: str) -> list[str]:
    """Return how a note with these words, and a row of a table, are rendered."""
    page = (
        f"- It was used by {words}, last at noon.\n\n| Key | By | State |\n| --- | --- | --- |\n| a | {words} | b |\n"
    )
    return list(tokens(RENDERER.parse(page)))


@given(text=strangers)
@example(text=PIECES[0])
@example(text=PIECES[1])
@example(text="<!channel> | a `b`")
@example(text="x\n\n# Action required")
@example(text=f"sk-or-v1-{'5' * 64}(https://evil.example)")
def test_no_words_of_a_stranger_are_rendered_as_anything_but_text(text: str) -> None:
    """A page has the same parts as with a plain word, and nothing in it is linked or mentions anybody."""
    words = harmless(text, LONGEST)

    assert shape(words) in (shape("word"), shape(""))
    assert not LINKED_BY_ITSELF.search(words)
    assert not MENTION.search(words)
    assert words.isprintable()
    assert len(words) <= LONGEST


@pytest.mark.parametrize(
    "name",
    [
        "my_app",
        "Billing (EU)",
        "C# tools & more!",
        "CI / staging",
        "openai/gpt-4o:free",
        "sk-or-v1-0e6...1c96",
        "Café 12%, \u6771\u4eac",
        "key-rotation_checkout",
    ],
)
def test_an_ordinary_name_stays_as_it_is(name: str) -> None:
    """The person on call must find the application by it."""
    assert harmless(name, LONGEST) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (PIECES[0], "(Press Retry here)(https: //evil.example/login)"),
        ("<!channel> | a `b`", "(!channel) - a 'b'"),
        ("_a_ and\n**b**", "-a- and --b--"),
        (f"{PIECES[-1][:20]}\u200b{PIECES[-1][20:]}", "sk-or-v1-(redacted)"),
    ],
)
def test_what_has_a_meaning_is_replaced_legibly(text: str, shown: str) -> None:
    """The words can still be read, and invisible characters hide no key."""
    assert harmless(text, LONGEST) == shown
