"""Lists that are paged by offset, read without a gap while records come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")
MAX_PAGES = 1_000
"""How many pages are read at most: a server that ignores the offset must not occupy a run forever."""


async def contiguous_pages(
    read: Callable[[int], Awaitable[tuple[Sequence[T], bool]]],
    identity: Callable[[T], Hashable],
    page_size: int,
    endless: Callable[[str], Exception],
) -> AsyncIterator[list[T]]:
    """Yield the records of a list page by page; one that is there all the time is yielded once.

    A record that is deleted meanwhile moves all later ones up. So each page begins with the last record of the one
    before; where it does not, some may have been skipped, and the pages before it are read again.

    Args:
        read: Reads a page at an offset, and tells whether it is the last one. A list that does not tell ends where
            nothing follows the last record.
        identity: What a record is recognised by.
        page_size: The number of records on a full page.
        endless: Makes the error of the caller's service from what happened.

    Yields:
        The records of a page that were not on an earlier one.

    Raises:
        Exception: What `endless` made, after `MAX_PAGES` pages.
    """
    seen: set[Hashable] = set()
    offset = 0
    for _ in range(MAX_PAGES):
        records, is_last = await read(offset)
        known = [identity(record) in seen for record in records]
        if offset and not any(known[:1]):
            offset = max(0, offset - page_size)
            continue
        fresh = {identity(record): record for record in records if identity(record) not in seen}
        seen |= fresh.keys()
        yield list(fresh.values())
        if is_last or (len(records) <= 1 and all(known)):
            return
        offset += len(records) - 1
    raise endless(f"list did not end after {MAX_PAGES} pages")
