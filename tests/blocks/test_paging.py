"""A list that is paged by offset is read without a gap, whatever comes and goes while it is read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.paging import contiguous_pages

PAGE_SIZE = 5
CHANGES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6)


async def records_of(records: list[int], changes: Sequence[tuple[int, int]], *, tells: bool) -> list[int]:
    """Read a list of which, before each page after the first, some records are deleted and newer ones put in front."""
    waiting, newest = list(changes), max(records, default=0)

    async def read(offset: int) -> tuple[list[int], bool]:
        nonlocal newest
        page = records[offset : offset + PAGE_SIZE]
        is_last = tells and offset + len(page) >= len(records)
        if waiting:
            deleted, created = waiting.pop(0)
            del records[:deleted]
            records[:0] = range(newest + created, newest, -1)
            newest += created
        return page, is_last

    return [record async for page in contiguous_pages(read, int, PAGE_SIZE, ValueError) for record in page]


@given(length=st.integers(0, 40), changes=CHANGES, tells=st.booleans())
async def test_no_record_that_stays_is_missed_and_none_is_yielded_twice(
    length: int, changes: list[tuple[int, int]], tells: bool
) -> None:
    """A key that is deleted between two pages moves the one after the edge onto the page that was read."""
    records = list(range(length, 0, -1))
    before = set(records)

    read = await records_of(records, changes, tells=tells)

    assert before & set(records) <= set(read)
    assert len(read) == len(set(read))


async def test_a_server_that_ignores_the_offset_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page begins with a record that was seen, and the last one is full, so the list never seems to end."""
    monkeypatch.setattr("blocks.paging.MAX_PAGES", 7)
    asked: list[int] = []

    async def read(offset: int) -> tuple[list[int], bool]:
        asked.append(offset)
        return [1, 2, 3, 4, 5], False

    with pytest.raises(ValueError, match="list did not end after 7 pages"):
        async for _ in contiguous_pages(read, int, PAGE_SIZE, ValueError):
            pass

    assert len(asked) == 7
