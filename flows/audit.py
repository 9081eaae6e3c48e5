"""The audit: what OpenRouter, the ledgers, the destinations and the deployments say, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from prefect import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import SecretStr

from blocks.errors import ConfigurationError, ForbiddenError, KeyRotationError, NotFoundError, UnauthorizedError
from blocks.openrouter import ApiKey
from flows.artifacts import show_table
from flows.conclude import Conclusion, conclude, open_run
from tasks.audit import (
    AuditFinding,
    Capped,
    Counts,
    KeyFilter,
    Kind,
    LedgerSet,
    Lost,
    Snapshot,
    connection_of,
    entries_of,
    find_lost_ledgers,
    in_change,
    judge_lost,
    judge_management_key,
    judge_orphan,
    judge_rotation,
    read_destinations_of,
    unreadable_ledgers,
)
from tasks.events import Event
from tasks.keys import fingerprint, label_agrees, moment
from tasks.ledger import Ledger
from tasks.repair import remove_orphans, restore_ledger
from tasks.rotation import is_slug
from tasks.run import Deployed, KeyReader, Run, World, side_by_side
from tasks.secrecy import secret_flow
from tasks.world import PrefectWorld

AT_ONCE = 8
"""How many destinations or keys are looked at side by side."""
OPEN_AT_ONCE = 32
"""How many destinations are open at the same time."""
RUNS_AT_ONCE = 200
"""For how many keys Prefect is asked at once whether it knows the runs that have made them."""
MAX_ROWS = 500
"""How many findings the artifact shows."""
DEFAULT_OLDER_THAN_DAYS = 90
MAX_OLDER_THAN_DAYS = 36_500

T = TypeVar("T")
OpenRotation = Callable[[str], AbstractAsyncContextManager[Run]]
"""Takes the slot of a rotation and opens its ledger."""


@secret_flow("audit")
async def audit(connection: str, older_than_days: int = DEFAULT_OLDER_THAN_DAYS, repair: bool = False) -> State[None]:
    """Compare every key of an account with all ledgers, destinations and deployments, and tell what does not agree.

    Args:
        connection: The name of the openrouter-credentials block whose account is audited.
        older_than_days: From which age on a key of no rotation is told of, in days.
        repair: Delete orphans that nobody holds, and write a lost ledger anew where one key is beyond doubt.

    Returns:
        The final state: Failed where something needs a person, with one sentence that says what.
    """
    async with conclude() as conclusion:
        older_than = check_order(connection, older_than_days, repair)
        async with PrefectWorld() as world:
            report = await follow_audit(world, connection, older_than, _open_rotation if repair else None)
        await show_table(f"audit-{connection}", as_table(report), as_description(report, flow_run.get_id()))
        conclusion.message = as_sentence(report)
        ending = Failed if report.needing_person() else Completed
        conclusion.state = ending(message=conclusion.message)
    return conclusion.state


def check_order(connection: object, older_than_days: object, repair: object) -> timedelta:
    """Refuse an audit that cannot work, before anything is looked at.

    Args:
        connection: The name of the connection.
        older_than_days: From which age on a key of no rotation is told of, in days.
        repair: Whether something may be put right.

    Returns:
        That age.

    Raises:
        ConfigurationError: One sentence that names the field.
    """
    if not isinstance(connection, str) or not is_slug(connection):
        raise ConfigurationError("connection: it must be the name of an openrouter-credentials block.")
    is_number = isinstance(older_than_days, int) and not isinstance(older_than_days, bool)
    if not is_number or not 0 <= int(str(older_than_days)) <= MAX_OLDER_THAN_DAYS:
        raise ConfigurationError(f"older_than_days: it must be a whole number from 0 to {MAX_OLDER_THAN_DAYS}.")
    if not isinstance(repair, bool):
        raise ConfigurationError("repair: it must be true or false.")
    return timedelta(days=int(str(older_than_days)))


@asynccontextmanager
async def _open_rotation(name: str) -> AsyncIterator[Run]:
    conclusion = Conclusion()
    async with open_run(name, False, conclusion) as run:
        run.step = "repair"
        conclusion.message = "An audit with repair has looked at this rotation."
        yield run


@dataclass(frozen=True)
class Report:
    """What an audit has found.

    Args:
        connection: The connection that was audited.
        at: When, UTC.
        counts: How many keys it has seen; `None` where OpenRouter did not let it.
        findings: What it has found, the gravest first.
    """

    connection: str
    at: datetime
    counts: Counts | None
    findings: tuple[AuditFinding, ...]

    def needing_person(self) -> list[AuditFinding]:
        """Say what somebody has to look after."""
        return [finding for finding in self.findings if finding.needs_person]


async def follow_audit(
    world: World, connection: str, older_than: timedelta, open_rotation: OpenRotation | None = None
) -> Report:
    """Audit a connection's account.

    Args:
        world: The way to everything outside of the process.
        connection: The connection.
        older_than: From which age on a key of no rotation is told of.
        open_rotation: Takes a rotation's slot, where something may be put right; `None` to change nothing.

    Returns:
        What was found, and what was put right.

    Raises:
        KeyRotationError: Something could not be looked at, so that the audit would have gaps.
    """
    openrouter: KeyReader = await world.connection(connection)
    at = world.now()
    try:
        comparison = await compare(world, connection, openrouter, older_than)
    except (UnauthorizedError, ForbiddenError) as error:
        refused = AuditFinding(Kind.MANAGEMENT_KEY_REFUSED, await _why_refused(openrouter, error))
        counts, found = None, [refused]
    else:
        counts, found = comparison.counts, comparison.findings
        if open_rotation is not None:
            found = await _repair(comparison, connection, open_rotation)
    findings = tuple(sorted(found, key=lambda finding: (finding.severity.value, finding.kind, finding.rotation)))
    for finding in findings:
        await _emit(world, connection, finding)
    return Report(connection, at, counts, findings)


async def _why_refused(openrouter: KeyReader, error: KeyRotationError) -> str:
    try:
        await openrouter.check()
    except KeyRotationError as refusal:
        return str(refusal)
    return str(error)


async def _emit(world: World, connection: str, finding: AuditFinding) -> None:
    event = Event.ORPHAN_FOUND if finding.kind is Kind.ORPHAN else Event.AUDIT_FINDING
    payload = {
        "connection": connection,
        "kind": finding.kind.value,
        "severity": finding.severity.name.lower(),
        "sentence": finding.sentence,
        "key_label": finding.key_label,
        "key_hash": finding.key_hash,
    }
    # What is about no rotation is about the connection; a rotation's name holds no colon.
    await world.emit(event, finding.rotation or f"connection:{connection}", **payload)


@dataclass(frozen=True)
class Comparison:
    """What an account, the ledgers, the destinations and the deployments say, side by side.

    Args:
        counts: How many keys there are.
        findings: What does not agree.
        deployed: The deployments, by the rotation's name.
        lost: The rotations whose ledger is gone, by name.
        secrets: What each destination holds that was read.
    """

    counts: Counts
    findings: list[AuditFinding]
    deployed: Mapping[str, Deployed]
    lost: Mapping[str, Lost]
    secrets: Mapping[str, SecretStr | None] = field(repr=False)

    def holders(self, label: str) -> list[str]:
        """Return which of the destinations that were read hold a key of this label."""
        return [name for name, value in self.secrets.items() if label_agrees(label, value)]


async def compare(world: World, connection: str, openrouter: KeyReader, older_than: timedelta) -> Comparison:
    """Compare the account, the ledgers, the destinations and the deployments.

    Args:
        world: The way to everything outside of the process.
        connection: The connection's name.
        openrouter: Its client.
        older_than: From which age on a key of no rotation is a finding.

    Returns:
        What they say, and what does not agree.

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
        self._secrets: dict[str, SecretStr | None] = {}
        self._unreadable: dict[str, str] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def compare(self, older_than: timedelta) -> Comparison:
        now = self.world.now()
        management_key = await self.openrouter.about_itself()
        before = await self._ledgers()
        self._deployed = {deployed.name: deployed async for deployed in self.world.deployments()}
        self._workspaces = [workspace async for workspace in self.openrouter.list_workspaces()]
        keys = await self._keys(KeyFilter(before, older_than, now))
        after = await self._ledgers()
        explained = before.hashes() | after.hashes()
        unexplained = [key for key in keys.ours.values() if key.hash not in explained]
        lost = {each.name: each for each in find_lost_ledgers(unexplained, after, self._deployed)}
        findings = [
            *judge_management_key(self.connection, management_key.expires_at, now),
            *unreadable_ledgers(after),
            *await self._at_rotations(after, keys.explained),
            *(finding for each in lost.values() for finding in judge_lost(each, now)),
            *self._orphans(unexplained, after, now),
            *keys.findings(),
        ]
        return Comparison(keys.counts, findings, self._deployed, lost, self._secrets)

    async def _ledgers(self) -> LedgerSet:
        return LedgerSet({name: value async for name, value in self.world.ledgers()})

    async def _keys(self, keys: KeyFilter) -> KeyFilter:
        for workspace in self._workspaces:
            async for key in self.openrouter.list_keys(workspace):
                keys.take(key)
                if len(keys.undecided) >= RUNS_AT_ONCE:
                    keys.decide(await self.world.known_runs(keys.runs()))
        if keys.undecided:
            keys.decide(await self.world.known_runs(keys.runs()))
        return keys

    async def _at_rotations(self, all_ledgers: LedgerSet, listed: dict[str, ApiKey]) -> list[AuditFinding]:
        first = await self._judge(all_ledgers.ledgers, listed)
        suspicious = [name for name, found in first.items() if found]
        if not suspicious:
            return []
        # The list and the ledgers were not read in one moment, and a list by pages can miss a key. So whatever seems
        # wrong is looked at once more, key by key, between two readings of its ledger that must be the same.
        before = await self._ledgers()
        ledgers = {name: before.ledgers[name] for name in suspicious if name in before.ledgers}
        verdicts = await self._judge(ledgers, {})
        after = await self._ledgers()
        judged: list[AuditFinding] = []
        for name, found in verdicts.items():
            judged += found if after.values.get(name) == before.values[name] else [in_change(name)]
        return judged

    async def _judge(self, ledgers: dict[str, Ledger], listed: dict[str, ApiKey]) -> dict[str, list[AuditFinding]]:
        wanted = [e.hash for ledger in ledgers.values() for e in entries_of(ledger, self.connection)]
        missing = [key_hash for key_hash in wanted if key_hash not in listed]
        found = await self._bounded([self._key(key_hash) for key_hash in missing])
        keys: dict[str, ApiKey | None] = {**listed, **dict(zip(missing, found, strict=True))}
        await self._at_destinations(ledgers)
        fingerprints = {name: fingerprint(value) for name, value in self._secrets.items()}
        now = self.world.now()
        return {
            name: list(
                judge_rotation(
                    Snapshot(name, ledger, self._deployed.get(name), keys, fingerprints, self._unreadable),
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

    async def _at_destinations(self, ledgers: dict[str, Ledger]) -> None:
        ours = [
            (name, ledger)
            for name, ledger in ledgers.items()
            if connection_of(ledger, self._deployed.get(name)) == self.connection
        ]
        places = sorted({place for _, ledger in ours for place in read_destinations_of(ledger)})
        for first in range(0, len(places), OPEN_AT_ONCE):
            async with self.world.apart() as world:
                await self._bounded([self._at_destination(world, one) for one in places[first : first + OPEN_AT_ONCE]])

    async def _at_destination(self, world: World, name: str) -> None:
        self._secrets.pop(name, None)
        self._unreadable.pop(name, None)
        try:
            self._secrets[name] = (await (await world.destination(name)).read_content()).value
        except KeyRotationError as error:
            self._unreadable[name] = str(error)

    def _orphans(self, unexplained: Sequence[ApiKey], ledgers: LedgerSet, now: datetime) -> list[AuditFinding]:
        orphans = Capped(Kind.ORPHAN, "keys are orphans, which an audit with repair leaves to the next one")
        for key in unexplained:
            orphans.add(judge_orphan(key, ledgers, self._deployed, now))
        return orphans.findings()

    async def _bounded(self, calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        async def one(call: Coroutine[Any, Any, T]) -> T:
            async with self._slots:
                return await call

        return await side_by_side([one(call) for call in calls])


async def _repair(comparison: Comparison, connection: str, open_rotation: OpenRotation) -> list[AuditFinding]:
    wanted: dict[str, list[AuditFinding]] = {}
    for finding in comparison.findings:
        if finding.rotation and finding.kind in (Kind.ORPHAN, Kind.LEDGER_LOST):
            wanted.setdefault(finding.rotation, []).append(finding)
    outcomes: dict[AuditFinding, AuditFinding] = {}
    for name, found in wanted.items():
        try:
            async with open_rotation(name) as run:
                outcomes |= await _repair_rotation(comparison, connection, found, run)
        except KeyRotationError as error:
            # The slot was not free.
            outcomes |= {finding: _not_repaired(finding, str(error)) for finding in found}
    return [outcomes.get(finding, finding) for finding in comparison.findings]


async def _repair_rotation(
    comparison: Comparison, connection: str, findings: Sequence[AuditFinding], run: Run
) -> dict[AuditFinding, AuditFinding]:
    deployed = comparison.deployed.get(run.name)
    orphans = [finding.key_hash for finding in findings if finding.kind is Kind.ORPHAN]
    outcomes = {}
    try:
        removed = await remove_orphans(run, connection, orphans, deployed, comparison.holders) if orphans else {}
        for finding in findings:
            if finding.kind is Kind.ORPHAN:
                outcomes[finding] = _repaired(finding, "It was deleted.", removed[finding.key_hash])
            elif deployed is not None:
                why = await restore_ledger(run, connection, comparison.lost[run.name].keys, deployed)
                outcomes[finding] = _repaired(finding, "The ledger was written anew.", why)
    except KeyRotationError as error:
        outcomes = {finding: outcomes.get(finding) or _not_repaired(finding, str(error)) for finding in findings}
    return outcomes


def _repaired(finding: AuditFinding, done: str, why_not: str | None) -> AuditFinding:
    if why_not is not None:
        return _not_repaired(finding, why_not)
    return replace(finding, sentence=f"{finding.sentence} {done}", repaired=True)


def _not_repaired(finding: AuditFinding, why: str) -> AuditFinding:
    return replace(finding, sentence=f"{finding.sentence} It was not repaired: {why}")


def as_table(report: Report) -> list[dict[str, str]]:
    """Show the findings of an audit as a table.

    Args:
        report: What was found.

    Returns:
        One row for each finding, the gravest first; one row that says so where there is none, or how many more there
        are.
    """
    rows = [
        {
            "severity": "repaired" if finding.repaired else finding.severity.name.lower(),
            "finding": finding.kind.value,
            "rotation": finding.rotation,
            "key": finding.key_label,
            "key hash": finding.key_hash,
            "what": finding.sentence,
            "what to do": "Nothing." if finding.repaired else finding.kind.advice,
        }
        for finding in report.findings[:MAX_ROWS]
    ]
    nothing = {"severity": "none", "finding": "", "rotation": "", "key": "", "key hash": "", "what to do": "Nothing."}
    if not rows:
        return [{**nothing, "what": "Everything agrees."}]
    if left_out := len(report.findings) - len(rows):
        advice = "Look after those above, then audit again; each finding is an event, too."
        rows.append({**nothing, "what": f"{left_out} more findings are not shown.", "what to do": advice})
    return rows


def as_description(report: Report, run_id: object) -> str:
    """Say what was audited, when and by which run, and how many keys there are.

    Args:
        report: What was found.
        run_id: The flow run's id.

    Returns:
        Markdown for an artifact, without any secret.
    """
    lines = [f"# Audit of {report.connection}", "", as_sentence(report), ""]
    lines += [f"- When: {moment(report.at)}", f"- By flow run: {run_id}"]
    if report.counts is not None:
        lines += [
            f"- Keys seen: {report.counts.seen}, disabled and expired ones included",
            f"- of rotations: {report.counts.of_rotations}",
            f"- with a marker that no ledger explains: {report.counts.unexplained}",
            f"- of no rotation: {report.counts.of_nobody}",
        ]
    return "\n".join(lines)


def as_sentence(report: Report) -> str:
    """Say how an audit ended.

    Args:
        report: What was found.

    Returns:
        One or two sentences.
    """
    needing = report.needing_person()
    repaired = sum(finding.repaired for finding in report.findings)
    done = f" {repaired} repaired." if repaired else ""
    if needing:
        things = "1 finding needs" if len(needing) == 1 else f"{len(needing)} findings need"
        return f"{things} a person, first: {needing[0].sentence} {needing[0].kind.advice}{done}"
    if report.counts is None:
        return "Nothing could be looked at."
    return (
        f"Nothing needs a person: {report.counts.seen} keys seen, {report.counts.of_rotations} of rotations, "
        f"{report.counts.unexplained} with a marker that no ledger explains, {report.counts.of_nobody} of no rotation; "
        f"{len(report.findings)} findings to know.{done}"
    )
