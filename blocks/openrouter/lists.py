"""The account's lists of keys, and the client's part for them.

Source of every path, field and status: OpenRouter's API reference, "BYOK" and "Observability"
(https://openrouter.ai/docs/api-reference/byok/list). A change replaces a whole list, without check-and-set.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pydantic import Field

from blocks.foreign import harmless
from blocks.openrouter.answers import parse
from blocks.openrouter.api import PAGE_SIZE, ManagementApi, segment
from blocks.openrouter.keys import Answer, Identifier

MAX_NAME = 100
"""How many characters are shown of a list's name, which a person has chosen."""


class ListKind(StrEnum):
    """The kind of object that has a list of keys; the value names it in messages.

    `path` is its endpoint, `field` the list, and `most` the maximum number of keys in it: `None` for any number.
    """

    path: str
    field: str
    most: int | None

    def __new__(cls, title: str, path: str, field: str, most: int | None) -> Self:
        """Create a kind from its title, its endpoint, the field of its list and that list's maximum length."""
        kind = str.__new__(cls, title)
        kind._value_ = title
        kind.path, kind.field, kind.most = path, field, most
        return kind

    BYOK = "BYOK credential", "byok", "allowed_api_key_hashes", 100
    BROADCAST = "broadcast destination", "observability/destinations", "api_key_hashes", None


@dataclass(frozen=True)
class KeyList:
    """A list of keys.

    Args:
        kind: The kind of object that has it.
        id: The object's id.
        name: The object's name.
        hashes: The keys in it; `None` if it applies to every key.
        workspace_id: Its workspace; `None` for all workspaces.
    """

    kind: ListKind
    id: str
    name: str
    hashes: tuple[str, ...] | None
    workspace_id: str | None = None

    def __str__(self) -> str:
        """Return its name in messages."""
        return f"{self.kind} {self.name}"


class _Record(Answer):
    id: Identifier
    name: str | None = None
    provider: str | None = None
    type: str | None = None
    workspace_id: Identifier | None = None

    def shown(self) -> str:
        return harmless(self.name or self.provider or self.type or "", MAX_NAME) or self.id


class _Credential(_Record):
    hashes: tuple[Identifier, ...] | None = Field(alias=ListKind.BYOK.field)


class _Broadcast(_Record):
    hashes: tuple[Identifier, ...] | None = Field(alias=ListKind.BROADCAST.field)


_RECORDS: dict[ListKind, type[_Credential | _Broadcast]] = {
    ListKind.BYOK: _Credential,
    ListKind.BROADCAST: _Broadcast,
}


def _as_list(kind: ListKind, record: _Credential | _Broadcast) -> KeyList:
    return KeyList(kind, record.id, record.shown(), record.hashes, record.workspace_id)


class KeyLists(ManagementApi):
    """The client's part for lists of keys."""

    async def key_lists(self, kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        """Iterate over the lists of keys of a workspace; objects that apply to every key are left out.

        Args:
            kind: The kind of object.
            workspace_id: The workspace; the account's default one if omitted.

        Yields:
            Each list.

        Raises:
            NotFoundError: The account has no such objects.
            ForbiddenError: The management key may not see them.
            ServiceError: A call failed, or the list does not end.
        """
        params: dict[str, str | int] = {"limit": PAGE_SIZE}
        if workspace_id is not None:
            params["workspace_id"] = workspace_id
        async for record in self._walk(_RECORDS[kind], kind.path, f"listing the {kind}s", **params):
            if record.hashes is not None:
                yield _as_list(kind, record)

    async def key_list(self, kind: ListKind, list_id: str) -> KeyList:
        """Read one list.

        Args:
            kind: The kind of object that has it.
            list_id: The object's id.

        Returns:
            The list.

        Raises:
            NotFoundError: It does not exist in this account.
            ServiceError: The call failed.
        """
        doing = f"reading a {kind}"
        answer = await self._manage("GET", _path(kind, list_id), doing)
        return _as_list(kind, parse(_RECORDS[kind], answer.get("data"), doing))

    async def replace_keys(self, which: KeyList, hashes: Sequence[str]) -> None:
        """Replace the keys in a list. The call is not repeated, because that could undo a change made in between.

        Args:
            which: The list.
            hashes: The new keys, at least one: without any, the list would be refused, or apply to every key.

        Raises:
            ValueError: No key was given.
            NotFoundError: The list does not exist in this account.
            RejectedError: OpenRouter refused the keys: one of them is not a live key of the account.
            ServiceError: The call failed; `outcome_unknown` says whether the list may have been changed.
        """
        if not hashes:
            raise ValueError("replace_keys needs at least one key.")
        body: dict[str, Any] = {which.kind.field: list(hashes)}
        doing = f"changing a {which.kind}"
        path = _path(which.kind, which.id)
        answer = await self._manage("PATCH", path, doing, json_body=body, repeatable=False, attempts=1)
        parse(_RECORDS[which.kind], answer.get("data"), doing)


def _path(kind: ListKind, list_id: str) -> str:
    return f"{kind.path}/{segment(list_id, str(kind))}"
