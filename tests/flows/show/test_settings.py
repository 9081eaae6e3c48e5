"""The table of changed settings."""

from __future__ import annotations

from flows.show.settings import change_table


def test_free_text_of_a_setting_is_no_markup() -> None:
    """A description or an invented field opens no link and no further cell, and a schedule keeps its asterisks."""
    changes = {
        "description": ("", "for [billing](https://evil.example) | *\nnow*"),
        "![x](y)": ("a", "b"),
        "schedule": ("0 3 * * *", "0 4 * * *"),
    }

    assert change_table(changes)[2:] == [
        "| Description | none | for (billing)(https: //evil.example) - - now- |",
        "| !(x)(y) | a | b |",
        "| Schedule | 0 3 * * * | 0 4 * * * |",
    ]
