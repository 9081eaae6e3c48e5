"""The audit: what OpenRouter, the ledgers, the destinations and the deployments say, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect import State, flow
from prefect.artifacts import acreate_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from blocks.errors import ConfigurationError, ForbiddenError, KeyRotationError, NotFoundError, UnauthorizedError
from blocks.openrouter import ApiKey
from blocks.secrets import Held
from flows.conclude import Conclusion, conclude, open_run
from flows.report import moment
from tasks.adopt import label_agrees
from tasks.audit import (
    AuditFinding,
    Books,
    Counts,
    KeySieve,
    Kind,
    Lost,
    Snapshot,
    connection_of,
    entries_of,
    find_lost_ledgers,
    in_change,
    judge_lost,
    judge_management_key,
    judge_marked,
    judge_rotation,
    read_destinations_of,
    unreadable_ledgers,
)
from tasks.events import Event
from tasks.ledger import Ledger, fingerprint
from tasks.repair import remove_orphan, restore_ledger
from tasks.rotation import is_slug, read_marker
from tasks.run import Deployed, OpenRouter, Run, World, side_by_side
from tasks.world import PrefectWorld

AT_ONCE = 8
"""How many destinations, keys or runs are looked at side by side."""
DEFAULT_OLDER_THAN_DAYS = 90
MAX_OLDER_THAN_DAYS = 36_500

T = TypeVar("T")
OpenRotation = Callable[[str], AbstractAsyncContextManager[Run]]
"""Takes the slot of a rotation and opens its ledger."""


@flow(name="audit", persist_result=False, validate_parameters=False, log_prints=False)
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
        await acreate_table_artifact(
            key=f"audit-{connection}", table=as_table(report), description=as_description(report, flow_run.get_id())
        )
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
    look = Look(world, connection, await world.connection(connection))
    at = world.now()
    try:
        counts, found = await look.at_everything(older_than)
    except (UnauthorizedError, ForbiddenError) as error:
        refused = AuditFinding(Kind.MANAGEMENT_KEY_REFUSED, await _why_refused(look.openrouter, error))
        counts, found = None, [refused]
    if open_rotation is not None:
        found = [await _repair(look, finding, open_rotation) for finding in found]
    findings = tuple(sorted(found, key=lambda finding: (finding.severity.value, finding.kind, finding.rotation)))
    for finding in findings:
        await _tell(world, connection, finding)
    return Report(connection, at, counts, findings)


async def _why_refused(openrouter: OpenRouter, error: KeyRotationError) -> str:
    try:
        await openrouter.check()
    except KeyRotationError as refusal:
        return str(refusal)
    return str(error)


async def _tell(world: World, connection: str, finding: AuditFinding) -> None:
    event = Event.ORPHAN_FOUND if finding.kind is Kind.ORPHAN else Event.AUDIT_FINDING
    told = {
        "connection": connection,
        "kind": finding.kind.value,
        "severity": finding.severity.name.lower(),
        "sentence": finding.sentence,
        "key_label": finding.key_label,
        "key_hash": finding.key_hash,
    }
    # What is about no rotation is about the connection; a rotation's name holds no colon.
    await world.emit(event, finding.rotation or f"connection:{connection}", **told)


class Look:
    """One look at everything that belongs to a connection.

    Args:
        world: The way to everything outside of the process.
        connection: The connection's name.
        openrouter: Its client.
    """

    def __init__(self, world: World, connection: str, openrouter: OpenRouter) -> None:
        self.world = world
        self.connection = connection
        self.openrouter = openrouter
        self.deployed: dict[str, Deployed] = {}
        self.lost: dict[str, Lost] = {}
        self._workspaces: list[str] = []
        self._held: dict[str, Held] = {}
        self._unreadable: dict[str, str] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def at_everything(self, older_than: timedelta) -> tuple[Counts, list[AuditFinding]]:
        """Look at the account, the ledgers, the destinations and the deployments.

        Args:
            older_than: From which age on a key of no rotation is told of.

        Returns:
            How many keys there are, and what does not agree.

        Raises:
            KeyRotationError: OpenRouter or Prefect failed.
        """
        now = self.world.now()
        management_key = await self.openrouter.about_itself()
        before = await self._books()
        self.deployed = {deployed.name: deployed async for deployed in self.world.deployments()}
        sieve = KeySieve(before.hashes(), older_than, now)
        self._workspaces = [workspace async for workspace in self.openrouter.list_workspaces()]
        for workspace in self._workspaces:
            async for key in self.openrouter.list_keys(workspace):
                sieve.take(key)
        after = await self._books()
        known_hashes = before.hashes() | after.hashes()
        marked = [key for key in sieve.marked.values() if key.hash not in known_hashes]
        return sieve.counts, [
            *judge_management_key(self.connection, management_key.expires_at, now),
            *unreadable_ledgers(after),
            *await self._at_rotations(after, sieve.explained),
            *await self._at_marked(marked, after, now),
            *sieve.findings(),
        ]

    async def _books(self) -> Books:
        return Books({name: value async for name, value in self.world.ledgers()})

    async def _at_rotations(self, books: Books, listed: dict[str, ApiKey]) -> list[AuditFinding]:
        suspicious = [name for name, found in (await self._judge(books, books.ledgers, listed)).items() if found]
        if not suspicious:
            return []
        # The list and the ledgers were not read in one moment, and a list by pages can miss a key. So whatever seems
        # wrong is looked at once more, key by key, between two readings of its ledger that must be the same.
        books = await self._books()
        verdicts = await self._judge(books, [name for name in suspicious if name in books.ledgers], {})
        after = await self._books()
        judged: list[AuditFinding] = []
        for name, found in verdicts.items():
            judged += found if after.values.get(name) == books.values[name] else [in_change(name)]
        return judged

    async def _judge(
        self, books: Books, names: Iterable[str], listed: dict[str, ApiKey]
    ) -> dict[str, list[AuditFinding]]:
        ledgers = {name: books.ledgers[name] for name in names}
        wanted = [e.hash for ledger in ledgers.values() for e in entries_of(ledger, self.connection)]
        missing = [key_hash for key_hash in wanted if key_hash not in listed]
        found = await self._bounded([self._key(key_hash) for key_hash in missing])
        keys: dict[str, ApiKey | None] = {**listed, **dict(zip(missing, found, strict=True))}
        await self._at_destinations(ledgers)
        held = {name: fingerprint(held.value) for name, held in self._held.items()}
        now = self.world.now()
        return {
            name: list(
                judge_rotation(
                    Snapshot(name, ledger, self.deployed.get(name), keys, held, self._unreadable),
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
            if connection_of(ledger, self.deployed.get(name)) == self.connection
        ]
        places = sorted({place for _, ledger in ours for place in read_destinations_of(ledger)})
        await self._bounded([self._at_destination(place) for place in places])

    async def _at_destination(self, name: str) -> None:
        self._held.pop(name, None)
        self._unreadable.pop(name, None)
        try:
            self._held[name] = await (await self.world.destination(name)).read()
        except KeyRotationError as error:
            self._unreadable[name] = str(error)

    async def _at_marked(self, marked: Sequence[ApiKey], books: Books, now: datetime) -> list[AuditFinding]:
        runs = {mark[1] for key in marked if (mark := read_marker(key.name))}
        known = await self._known(runs)
        self.lost = {lost.name: lost for lost in find_lost_ledgers(marked, books, self.deployed, known)}
        lost = [finding for lost in self.lost.values() for finding in judge_lost(lost, now)]
        judged = [judge_marked(key, books, self.deployed, known, now) for key in marked]
        return [*lost, *filter(None, judged)]

    async def _known(self, runs: Collection[UUID]) -> set[UUID]:
        asked = sorted(runs)
        answers = await self._bounded([self.world.knows_run(run_id) for run_id in asked])
        return {run_id for run_id, known in zip(asked, answers, strict=True) if known}

    async def _bounded(self, calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        async def one(call: Coroutine[Any, Any, T]) -> T:
            async with self._places:
                return await call

        return await side_by_side([one(call) for call in calls])

    def holders(self, label: str) -> list[str]:
        """Say which of the destinations that were read hold a key.

        Args:
            label: The key's label.

        Returns:
            Their names.
        """
        return [name for name, held in self._held.items() if label_agrees(label, held.value)]


async def _repair(look: Look, finding: AuditFinding, open_rotation: OpenRotation) -> AuditFinding:
    if finding.kind not in (Kind.ORPHAN, Kind.LEDGER_LOST):
        return finding
    try:
        async with open_rotation(finding.rotation) as run:
            return await _repair_in(look, finding, run)
    except KeyRotationError as error:
        # The slot was not free.
        return _not_repaired(finding, str(error))


async def _repair_in(look: Look, finding: AuditFinding, run: Run) -> AuditFinding:
    deployed = look.deployed.get(finding.rotation)
    try:
        if finding.kind is Kind.ORPHAN:
            why = await remove_orphan(run, look.connection, finding.key_hash, deployed, look.holders)
            done = "It was deleted."
        elif deployed is not None:
            why = await restore_ledger(run, look.connection, look.lost[finding.rotation].keys, deployed)
            done = "The ledger was written anew."
    except KeyRotationError as error:
        return _not_repaired(finding, str(error))
    if why is not None:
        return _not_repaired(finding, f"{why}.")
    return replace(finding, sentence=f"{finding.sentence} {done}", repaired=True)


def _not_repaired(finding: AuditFinding, why: str) -> AuditFinding:
    return replace(finding, sentence=f"{finding.sentence} It was not repaired: {why}")


def as_table(report: Report) -> list[dict[str, str]]:
    """Show the findings of an audit as a table.

    Args:
        report: What was found.

    Returns:
        One row for each finding, the gravest first; one row that says so where there is none.
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
        for finding in report.findings
    ]
    nothing = {"severity": "none", "finding": "", "rotation": "", "key": "", "key hash": ""}
    return rows or [{**nothing, "what": "Everything agrees.", "what to do": "Nothing."}]


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
