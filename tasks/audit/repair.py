"""What an audit may put right: delete an orphan, write a lost ledger anew. Anything in doubt is left to a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime

from blocks.errors import KeyRotationError, NotFoundError
from blocks.openrouter.keys import ApiKey
from tasks.audit.compare import Comparison
from tasks.audit.findings import Finding, Kind
from tasks.audit.judge import is_live, is_new
from tasks.model.events import Event
from tasks.model.keys import fingerprint, label_agrees, period_end, read_marker
from tasks.model.ledger import Current, Ledger
from tasks.model.places import kept_places
from tasks.model.records import Budget
from tasks.model.rotation import Rotation
from tasks.model.terms import Terms
from tasks.model.written_off import as_explanation
from tasks.world.ports import Deployed
from tasks.world.run import Run

Holders = Callable[[str], list[str]]
"""Says which of the destinations that the audit has read hold a key of a label."""


async def remove_orphans(
    run: Run, connection: str, hashes: Sequence[str], deployed: Deployed | None, holders: Holders
) -> dict[str, str | None]:
    """Delete keys that no ledger explains, after everything that speaks for them was looked at once more.

    Args:
        run: A run that holds the slot of the rotation in the keys' markers.
        connection: The connection that is audited.
        hashes: The keys' hashes.
        deployed: The rotation's deployment, if it has one.
        holders: Says which destinations of other rotations hold a key.

    Returns:
        For each hash, why the key was kept; `None` where it is gone.

    Raises:
        KeyRotationError: Something could not be looked at, so nothing was deleted.
    """
    ledger = await run.load()
    # As text, so that even a ledger that cannot be read speaks for its keys.
    explaining = [as_explanation(value) async for _, value in run.world.ledgers()]
    destinations = _destinations(ledger, deployed)
    kept: dict[str, str | None] = {}
    doomed: list[ApiKey] = []
    for key_hash in hashes:
        try:
            key = await (await run.world.connection(connection)).get_key(key_hash)
            kept[key_hash] = await _why_kept(run, key, explaining) or _why_not_certain(run, key, destinations)
            doomed += [key] if kept[key_hash] is None else []
        except NotFoundError:
            kept[key_hash] = None
        except KeyRotationError as error:
            kept[key_hash] = str(error)
    if doomed:
        await run.look(destinations)
    for key in doomed:
        held = [name for name in destinations if label_agrees(key.label, run.contents[name].value)]
        holding = sorted({*held, *holders(key.label)})
        kept[key.hash] = f"{', '.join(holding)} holds it." if holding else await _remove(run, connection, key)
    return kept


async def _remove(run: Run, connection: str, key: ApiKey) -> str | None:
    try:
        await run.guard()
        await (await run.world.connection(connection)).delete_key(key.hash)
    except KeyRotationError as error:
        return str(error)
    payload = {"key_label": key.label, "key_hash": key.hash, "connection": connection}
    await run.world.emit(Event.ORPHAN_REMOVED, run.name, **payload)
    return None


def _destinations(ledger: Ledger, deployed: Deployed | None) -> list[str]:
    recorded = (ledger.current.destinations if ledger.current else ()) + (
        ledger.pending.destinations if ledger.pending else ()
    )
    named = deployed.rotation.destinations if deployed and deployed.rotation else []
    return sorted({*recorded, *named})


async def _why_kept(run: Run, key: ApiKey, explaining: Sequence[str]) -> str | None:
    mark = read_marker(key.name)
    if mark is None or mark[0] != run.name or mark[1] not in await run.world.known_runs({mark[1]}):
        return "it does not carry the marker of a run that is known here."
    if is_new(key, run.world.now()):
        return "it was made less than an hour ago."
    ledger = run.ledger
    waiting = {entry.run_id for entry in (ledger.pending, *ledger.unresolved) if entry}
    if mark[1] in waiting:
        return "the ledger still waits for it, and the next run of the rotation deletes it."
    if key.hash in ledger.hashes() or any(key.hash in text for text in explaining):
        return "a ledger explains it now."
    return None


def _why_not_certain(run: Run, key: ApiKey, destinations: list[str]) -> str | None:
    if not run.has_ledger or not destinations:
        return "without its rotation's ledger and destinations nobody knows who holds it."
    used = key.last_used_at is not None or key.usage + key.byok_usage > 0
    if used and is_live(key, run.world.now()):
        return "it has been used, so somebody holds it."
    return None


async def restore_ledger(run: Run, connection: str, keys: tuple[ApiKey, ...], deployed: Deployed) -> str | None:
    """Write a lost ledger anew, where one key and all destinations of the rotation agree.

    Args:
        run: A run that holds the rotation's slot.
        connection: The connection that is audited.
        keys: The keys of the rotation that the audit has found by their markers.
        deployed: The rotation's deployment.

    Returns:
        Why it was not written; `None` where the ledger is there.

    Raises:
        KeyRotationError: Something could not be looked at, so nothing was written.
    """
    await run.load()
    if run.has_ledger:
        return None
    rotation = deployed.rotation
    if rotation is None or rotation.name != run.name or rotation.connection != connection:
        return "its deployment is not valid, or uses another connection."
    if why := _why_in_doubt(rotation, keys):
        return why
    try:
        key = await (await run.world.connection(connection)).get_key(keys[0].hash)
    except NotFoundError:
        return "its key does not exist any more."
    current = await _current(run, rotation, key, run.world.now())
    if current is None:
        return "its destinations do not all hold its one key, or that key is not usable."
    ledger = Ledger(retirement=rotation.retirement)
    await run.write(ledger.adopted(current))
    return None


def _why_in_doubt(rotation: Rotation, keys: tuple[ApiKey, ...]) -> str | None:
    if len(keys) != 1:
        return "more than one of its keys exists."
    if rotation.key.carry_budget and rotation.key.limit_usd is None:
        return "its budget was carried over, and nobody knows its full limit."
    return None


async def _current(run: Run, rotation: Rotation, key: ApiKey, now: datetime) -> Current | None:
    held = await run.look(rotation.destinations)
    secrets = [run.contents[name].value for name in rotation.destinations]
    mark = read_marker(key.name)
    agree = all(label_agrees(key.label, secret) for secret in secrets) and len(set(held.values())) == 1
    if mark is None or mark[0] != run.name or not agree or not is_live(key, now):
        return None
    terms, budget = _terms_and_budget(rotation, key, now)
    return Current(
        hash=key.hash,
        label=key.label,
        fingerprint=fingerprint(secrets[0]) or "",
        made_by=mark[1],
        connection=rotation.connection,
        workspace_id=key.workspace_id,
        since=key.created_at,
        destinations=tuple(rotation.destinations),
        places=kept_places(rotation.destinations, run.places),
        terms=terms,
        budget=budget,
    )


def _terms_and_budget(rotation: Rotation, key: ApiKey, now: datetime) -> tuple[Terms, Budget | None]:
    terms, whole = Terms.of(key), rotation.key.limit_usd
    if not rotation.key.carry_budget or whole is None or key.limit is None or key.limit >= whole:
        return terms, None
    budget = Budget(carried=whole - key.limit, ends_at=period_end(rotation.key.terms(now).limit_reset, now))
    return terms.model_copy(update={"limit": whole}), budget


OpenRotation = Callable[[str], AbstractAsyncContextManager[Run]]
"""Takes the slot of a rotation and opens its ledger."""


async def repair_findings(comparison: Comparison, connection: str, open_rotation: OpenRotation) -> list[Finding]:
    """Repair what is beyond doubt, one rotation at a time."""
    wanted: dict[str, list[Finding]] = {}
    for finding in comparison.findings:
        if finding.rotation and finding.kind in (Kind.ORPHAN, Kind.LEDGER_LOST):
            wanted.setdefault(finding.rotation, []).append(finding)
    outcomes: dict[Finding, Finding] = {}
    for name, found in wanted.items():
        try:
            async with open_rotation(name) as run:
                outcomes |= await _repair_rotation(comparison, connection, found, run)
        except KeyRotationError as error:
            # The slot was not free.
            outcomes |= {finding: _not_repaired(finding, str(error)) for finding in found}
    return [outcomes.get(finding, finding) for finding in comparison.findings]


async def _repair_rotation(
    comparison: Comparison, connection: str, findings: Sequence[Finding], run: Run
) -> dict[Finding, Finding]:
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


def _repaired(finding: Finding, done: str, why_not: str | None) -> Finding:
    if why_not is not None:
        return _not_repaired(finding, why_not)
    return replace(finding, sentence=f"{finding.sentence} {done}", repaired=True)


def _not_repaired(finding: Finding, why: str) -> Finding:
    return replace(finding, sentence=f"{finding.sentence} It was not repaired: {why}")
