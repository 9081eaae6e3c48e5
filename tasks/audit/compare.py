"""Read an account, the ledgers, the destinations and the deployments, and compare them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import SecretStr

from blocks.errors import KeyRotationError, NotFoundError
from blocks.openrouter.keys import ApiKey
from tasks.audit.account_keys import KeyFilter
from tasks.audit.findings import CappedFindings, Counts, Finding, Kind
from tasks.audit.judge import (
    Snapshot,
    connection_of_rotation,
    in_change,
    judge_management_key,
    judge_rotation,
    keys_made_with,
    read_destinations_of,
    unreadable_ledgers,
)
from tasks.audit.ledgers import LedgerSet
from tasks.audit.lists import ListReader
from tasks.audit.unrecorded import LostLedger, find_lost_ledgers, judge_lost, judge_orphan
from tasks.model.keys import fingerprint, label_agrees, read_marker
from tasks.model.ledger import Ledger
from tasks.world.account import knows_workspace
from tasks.world.optional import Part, if_available, listed
from tasks.world.ports import Deployed, KeyReader, World
from tasks.world.run import gather_all

AT_ONCE = 8
"""How many destinations or keys are read concurrently."""
OPEN_AT_ONCE = 32
"""How many destinations are open at once."""
RUNS_AT_ONCE = 200
"""For how many keys one request asks Prefect whether it knows the runs that made them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Args:
        counts: The number of keys, by owner.
        findings: The differences.
        deployed: The deployments, by rotation.
        lost: The rotations whose ledger is lost, by name.
        secrets: The content of each destination that was read.
        named: The hashes in the account's lists.
    """

    counts: Counts
    findings: list[Finding]
    deployed: Mapping[str, Deployed]
    lost: Mapping[str, LostLedger]
    secrets: Mapping[str, SecretStr | None] = field(repr=False)
    named: frozenset[str] = frozenset()

    def holders(self, label: str) -> list[str]:
        """Return the destinations, among those that were read, that hold a key with this label."""
        return [name for name, value in self.secrets.items() if label_agrees(label, value)]


async def compare(world: World, connection: str, openrouter: KeyReader, older_than: timedelta) -> Comparison:
    """Compare an account with the ledgers, the destinations and the deployments.

    Args:
        world: Access to everything outside of the process.
        connection: The connection's name.
        openrouter: Its client.
        older_than: Age from which a key without a rotation is reported.

    Raises:
        KeyRotationError: OpenRouter or Prefect failed.
    """
    return await _Reading(world, connection, openrouter).compare(older_than)


class _Reading:
    def __init__(self, world: World, connection: str, openrouter: KeyReader) -> None:
        self.world = world
        self.connection = connection
        self.openrouter = openrouter
        self._deployed: dict[str, Deployed] = {}
        self._workspaces: list[str] = []
        self._lists = ListReader(openrouter)
        self._secrets: dict[str, SecretStr | None] = {}
        self._unreadable: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def compare(self, older_than: timedelta) -> Comparison:
        now = self.world.now()
        management_key = await self.openrouter.about_itself()
        before = await self._ledgers()
        self._deployed = await self._deployments()
        workspaces = await if_available(Part.WORKSPACES, listed(self.openrouter.list_workspaces()), self._lists.note)
        workspaces_read: list[str | None] = (
            [None, *await self._named_workspaces(before)] if workspaces is None else [*workspaces]
        )
        named = await self._lists.read(workspaces_read)
        installation = await self.world.installation()
        keys = await self._keys(
            KeyFilter(before, installation, self._deployed, older_than, now, named), workspaces_read
        )
        # If the account does not list its workspaces, its keys name those that hold any.
        self._workspaces = (
            sorted({*keys.workspaces, *filter(None, workspaces_read)}) if workspaces is None else workspaces
        )
        after = await self._ledgers()
        recorded = before.hashes() | after.hashes()
        unrecorded = [key for key in keys.ours.values() if key.hash not in recorded]
        lost = {each.name: each for each in find_lost_ledgers(unrecorded, after, self._deployed)}
        findings = [
            *judge_management_key(self.connection, management_key.expires_at, now),
            *unreadable_ledgers(after),
            *await self._rotation_findings(after, keys.recorded),
            *(finding for each in lost.values() for finding in judge_lost(each, now)),
            *self._orphans(unrecorded, after, now),
            *keys.findings(),
            *await self._list_findings(named, keys.listed, after, now),
        ]
        return Comparison(keys.counts, findings, self._deployed, lost, self._secrets, frozenset(named))

    async def _ledgers(self) -> LedgerSet:
        return LedgerSet({name: value async for name, value in self.world.ledgers()})

    async def _named_workspaces(self, ledgers: LedgerSet) -> list[str]:
        """Return the account's workspaces that ledgers or deployments name."""
        rotations = [each.rotation for each in self._deployed.values() if each.rotation]
        asked = {each.key.workspace_id for each in rotations if each.connection == self.connection}
        named = asked.union(*(each.workspaces(self.connection) for each in ledgers.ledgers.values()))
        return [each for each in sorted(filter(None, named)) if await knows_workspace(self.openrouter, each)]

    async def _deployments(self) -> dict[str, Deployed]:
        found: dict[str, Deployed] = {}
        async for each in self.world.deployments():
            # A deployment may be renamed; of several for one rotation, the one with the rotation's name counts.
            name = each.rotation.name if each.rotation else each.name
            if name not in found or name == each.name:
                found[name] = each
        return found

    async def _list_findings(
        self, named: Collection[str], seen: Mapping[str, ApiKey], ledgers: LedgerSet, now: datetime
    ) -> list[Finding]:
        current = {name: ledger.current for name, ledger in ledgers.ledgers.items()}
        ours = {name for name, key in current.items() if key and key.connection == self.connection}
        used = {key.workspace_id for name, key in current.items() if key and name in ours}
        await self._lists.read_logging({workspace for workspace in self._workspaces if workspace in used})
        here = {name: ledgers.ledgers[name] for name in sorted(ours)}
        return await self._lists.findings(sorted(set(named) - set(seen)), seen, here, now)

    async def _keys(self, keys: KeyFilter, workspaces: Sequence[str | None]) -> KeyFilter:
        default: set[str] = set()
        for workspace in workspaces:
            if workspace in default:
                # Without a list of workspaces, the default one was read by omitting its id.
                continue
            async for key in self.openrouter.list_keys(workspace):
                keys.take(key)
                if len(keys.undecided) >= RUNS_AT_ONCE:
                    await self._decide(keys)
            default |= keys.workspaces if workspace is None else set()
        await self._decide(keys)
        return keys

    async def _decide(self, keys: KeyFilter) -> None:
        runs = keys.runs()
        keys.decide(await self.world.known_runs(runs) if runs else set())

    async def _rotation_findings(self, all_ledgers: LedgerSet, listed: dict[str, ApiKey]) -> list[Finding]:
        first = await self._judge(all_ledgers.ledgers, listed)
        suspicious = [name for name, found in first.items() if found]
        if not suspicious:
            return []
        # The keys and the ledgers were not read atomically, and a paginated list can miss a key. So every suspicion is
        # verified key by key, and counts only if the ledger is the same before and after.
        before = await self._ledgers()
        ledgers = {name: before.ledgers[name] for name in suspicious if name in before.ledgers}
        verdicts = await self._judge(ledgers, {})
        after = await self._ledgers()
        judged: list[Finding] = []
        for name, found in verdicts.items():
            judged += found if after.values.get(name) == before.values[name] else [in_change(name)]
        return judged

    async def _judge(self, ledgers: dict[str, Ledger], listed: dict[str, ApiKey]) -> dict[str, list[Finding]]:
        wanted = [e.hash for ledger in ledgers.values() for e in keys_made_with(ledger, self.connection)]
        missing = [key_hash for key_hash in wanted if key_hash not in listed]
        found = await self._bounded([self._key(key_hash) for key_hash in missing])
        keys: dict[str, ApiKey | None] = {**listed, **dict(zip(missing, found, strict=True))}
        await self._read_destinations(ledgers)
        fingerprints = {name: fingerprint(value) for name, value in self._secrets.items()}
        now = self.world.now()
        return {
            name: list(
                judge_rotation(
                    Snapshot(
                        name, ledger, self._deployed.get(name), keys, fingerprints, self._unreadable, self._places
                    ),
                    self.connection,
                    self._workspaces,
                    now,
                )
            )
            for name, ledger in ledgers.items()
        }

    async def _key(self, key_hash: str) -> ApiKey | None:
        try:
            return await self.openrouter.get_key(key_hash)
        except NotFoundError:
            return None

    async def _read_destinations(self, ledgers: dict[str, Ledger]) -> None:
        ours = [
            (name, ledger)
            for name, ledger in ledgers.items()
            if connection_of_rotation(ledger, self._deployed.get(name)) == self.connection
        ]
        names = sorted({name for _, ledger in ours for name in read_destinations_of(ledger)})
        for first in range(0, len(names), OPEN_AT_ONCE):
            some = names[first : first + OPEN_AT_ONCE]
            async with self.world.separate() as world:
                await world.load_blocks(some, self.connection)
                await self._bounded([self._read_destination(world, one) for one in some])

    async def _read_destination(self, world: World, name: str) -> None:
        self._secrets.pop(name, None)
        self._unreadable.pop(name, None)
        self._places.pop(name, None)
        try:
            destination = await world.destination(name)
            self._places[name] = destination.place()
            self._secrets[name] = (await destination.read_content()).value
        except KeyRotationError as error:
            self._unreadable[name] = str(error)

    def _orphans(self, unrecorded: Sequence[ApiKey], ledgers: LedgerSet, now: datetime) -> list[Finding]:
        held = CappedFindings(Kind.HELD_KEY_UNRECORDED, "keys that destinations hold and no ledger has")
        orphans = CappedFindings(Kind.ORPHAN, "orphans, for the next audit with repair")
        for key in unrecorded:
            finding = judge_orphan(key, ledgers, self._deployed, self._holders(key, ledgers), now)
            (orphans if finding is None or finding.kind is Kind.ORPHAN else held).add(finding)
        return [*held.findings(), *orphans.findings()]

    def _holders(self, key: ApiKey, ledgers: LedgerSet) -> list[str]:
        mark = read_marker(key.name)
        ledger = ledgers.ledgers.get(mark.rotation) if mark else None
        names = read_destinations_of(ledger) if ledger else ()
        return [name for name in names if label_agrees(key.label, self._secrets.get(name))]

    async def _bounded(self, calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        async def one(call: Coroutine[Any, Any, T]) -> T:
            async with self._slots:
                return await call

        return await gather_all([one(call) for call in calls])
