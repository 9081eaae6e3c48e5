"""Find faults in the account's lists of keys: dead keys, and current keys that are missing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

from blocks.errors import NotFoundError
from blocks.openrouter.keys import ApiKey
from blocks.openrouter.lists import KeyList, ListKind
from tasks.audit.findings import CappedFindings, Finding, Kind
from tasks.model.ledger import Ledger
from tasks.model.lists import predecessors_of, successor_of
from tasks.world.optional import Part, if_available, read_lists
from tasks.world.ports import KeyReader

SHOWN = 12
"""How many digits of a hash are shown; enough to find the key at OpenRouter."""


class ListReader:
    """The lists of an account, and the parts of it that the management key cannot see.

    Args:
        openrouter: The connection's client.
    """

    def __init__(self, openrouter: KeyReader) -> None:
        self._openrouter = openrouter
        self._unseen: list[str] = []
        self._logging: list[str] = []
        self.lists: dict[tuple[ListKind, str], KeyList] = {}

    def note(self, sentence: str) -> None:
        """Record a part of the account that cannot be seen."""
        if sentence not in self._unseen:
            self._unseen.append(sentence)

    async def read(self, workspaces: Sequence[str | None]) -> set[str]:
        """Read the lists of some workspaces, and return the hashes in them.

        Raises:
            ServiceError: OpenRouter failed.
        """
        for workspace in workspaces:
            found = await read_lists(self._openrouter, workspace, self.note)
            # A list for all workspaces is returned for each of them.
            self.lists |= {(each.kind, each.id): each for each in found}
        return {key_hash for each in self.lists.values() for key_hash in each.hashes or ()}

    async def read_logging(self, workspaces: Collection[str]) -> None:
        """Record the workspaces that log chosen keys only.

        Raises:
            ServiceError: OpenRouter failed.
        """
        for workspace_id in sorted(workspaces):
            found = await if_available(Part.WORKSPACES, self._openrouter.workspace(workspace_id), self.note)
            if found and found.logs_chosen_keys:
                self._logging.append(workspace_id)

    async def findings(
        self, unseen: Collection[str], seen: Mapping[str, ApiKey], ledgers: Mapping[str, Ledger], now: datetime
    ) -> list[Finding]:
        """Return the findings about lists; each suspicion is verified by reading the list again.

        Args:
            unseen: The hashes in lists that belong to no key that was read.
            seen: The keys in lists, by hash.
            ledgers: The ledgers of the rotations whose current keys belong to this account.
            now: The current time, UTC.

        Raises:
            ServiceError: OpenRouter failed.
        """
        dead = {key_hash: "is not usable" for key_hash, key in seen.items() if not key.is_live(now)}
        dead |= {key_hash: "does not exist any more" for key_hash in unseen if await self._is_gone(key_hash)}
        found = CappedFindings(Kind.DEAD_KEY_LISTED, "dead keys in lists")
        missing: list[Finding] = []
        for each in self.lists.values():
            suspicious = set(each.hashes or ()) & set(dead) or any(_missing(each, ledgers))
            again = await self._again(each) if suspicious else None
            for key_hash in (again.hashes or ()) if again else ():
                if key_hash in dead:
                    sentence = f"The {again} names the key {key_hash[:SHOWN]}, which {dead[key_hash]}."
                    found.add(Finding(Kind.DEAD_KEY_LISTED, sentence, key_hash=key_hash))
            missing += _missing(again, ledgers) if again else ()
        notices = [Finding(Kind.NOT_SEEN, sentence) for sentence in self._unseen]
        notices += [Finding(Kind.LOGS_CHOSEN_KEYS, _logs(workspace)) for workspace in self._logging]
        return [*missing, *found.findings(), *notices]

    async def _is_gone(self, key_hash: str) -> bool:
        try:
            await self._openrouter.get_key(key_hash)
        except NotFoundError:
            return True
        return False

    async def _again(self, which: KeyList) -> KeyList | None:
        try:
            return await self._openrouter.key_list(which.kind, which.id)
        except NotFoundError:
            return None


def _missing(which: KeyList, ledgers: Mapping[str, Ledger]) -> Iterator[Finding]:
    listed_hashes = set(which.hashes or ())
    for name, ledger in ledgers.items():
        current = ledger.current
        if current is None or current.hash in listed_hashes:
            continue
        listed = listed_hashes & predecessors_of(ledger, current.hash, inherit=current.inherits)
        former = [key for key in ledger.superseded if key.hash in listed]
        if any(successor_of(ledger, key, which.workspace_id) for key in former):
            sentence = (
                f"The {which} names the superseded key {former[-1].label} of rotation {name}, and not the current key "
                f"{current.label}."
            )
            yield Finding(Kind.SUCCESSOR_NOT_LISTED, sentence, name, current.label, current.hash)


def _logs(workspace_id: str) -> str:
    return f"The workspace {workspace_id} logs chosen keys only, and its choice cannot be carried over to new keys."
