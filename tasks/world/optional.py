"""Optional parts of an OpenRouter account: one rule for every part of the API that a rotation can do without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self, TypeVar

from blocks.errors import ForbiddenError, NotFoundError, RejectedError, ServiceError
from blocks.openrouter.analytics import Use
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.lists import KeyList, ListKind
from tasks.world.ports import KeyReader

T = TypeVar("T")
NOT_FOUND = 404
LONGEST_LOOKBACK = timedelta(days=31)
"""How far back an account is asked for the uses of a key."""


class Part(StrEnum):
    """A part of OpenRouter's API that an account may lack, or that its management key may not see.

    `path` is the endpoint that shows whether it exists.
    """

    path: str

    def __new__(cls, title: str, path: str) -> Self:
        """Create a part from its title and its path."""
        part = str.__new__(cls, title)
        part._value_ = title
        part.path = path
        return part

    WORKSPACES = "workspaces", "workspaces"
    GUARDRAILS = "guardrails", "guardrails/assignments/keys"
    BYOK = "BYOK credentials", ListKind.BYOK.path
    BROADCAST = "broadcast destinations", ListKind.BROADCAST.path
    ANALYTICS = "analytics", "analytics/meta"


PARTS_WITH_LISTS = {ListKind.BYOK: Part.BYOK, ListKind.BROADCAST: Part.BROADCAST}
"""The parts that contain lists of keys."""


async def if_available(part: Part, look: Awaitable[T], note: Callable[[str], None] | None = None) -> T | None:
    """Return the result of a call to an optional part of an account.

    403 and 404 mean that the part is missing or hidden, and are noted once; any other failure is raised.
    OpenRouter does not document its answer for a missing part, so a 404 counts whatever its body is.

    Args:
        part: The part.
        look: The call.
        note: Receives a sentence for the report if the part is missing.

    Returns:
        The call's result; `None` if the account lacks the part.

    Raises:
        ServiceError: The call failed for another reason.
    """
    try:
        return await look
    except ServiceError as error:
        if not isinstance(error, NotFoundError | ForbiddenError) and error.status != NOT_FOUND:
            raise
        if note is not None:
            note(
                f"The connection sees no {part} (OpenRouter answered {error.status}), so none of them are carried over."
            )
        return None


async def what_is_seen(openrouter: OpenRouterClient) -> str:
    """Name the optional parts of the account that can be seen, those that cannot, and those that are refused.

    Raises:
        ServiceError: OpenRouter failed for a reason that does not concern one part.
    """
    seen: list[str] = []
    unseen: list[str] = []
    refused: list[str] = []
    for part in Part:
        try:
            (seen if await if_available(part, openrouter.peek(part.path)) else unseen).append(part)
        except RejectedError as error:
            refused.append(f"{part} ({error.status})")
    lacks = f" The account lacks, or hides from it, {_enumerated(unseen)}." if unseen else ""
    # Such an answer concerns the workspace that is asked about: the default one, as none is named.
    without = "so the account's default workspace may have been deleted"
    problem = f" OpenRouter refused to show {_enumerated(refused)}, {without}." if refused else ""
    return f"It can read {_enumerated(seen)}.{lacks}{problem}"


def _enumerated(parts: Sequence[str]) -> str:
    return ", ".join(parts) or "nothing else"


async def listed(items: AsyncIterator[T]) -> list[T]:
    """Collect the items of an async iterator."""
    return [item async for item in items]


async def read_lists(
    openrouter: KeyReader, workspace_id: str | None, note: Callable[[str], None] | None = None
) -> list[KeyList]:
    """Return a workspace's lists of keys; those of parts that the account lacks are left out.

    Args:
        openrouter: The connection's client.
        workspace_id: The workspace; the account's default one if omitted.
        note: Receives a sentence for the report if a part is missing.

    Raises:
        ServiceError: OpenRouter failed.
    """
    found: list[KeyList] = []
    for kind, part in PARTS_WITH_LISTS.items():
        found += await if_available(part, listed(openrouter.key_lists(kind, workspace_id)), note) or []
    return found


async def read_uses(openrouter: KeyReader, key_hash: str, since: datetime, now: datetime) -> list[Use]:
    """Return the uses of a key, the latest first; none if the account has no analytics.

    Args:
        openrouter: The key's connection.
        key_hash: The key's hash.
        since: Start of the period, UTC; limited to `LONGEST_LOOKBACK` ago.
        now: The current time, UTC.

    Raises:
        ServiceError: OpenRouter failed.
    """
    look = openrouter.uses_of(key_hash, max(since, now - LONGEST_LOOKBACK), now)
    return await if_available(Part.ANALYTICS, look) or []
