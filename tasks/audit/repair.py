"""Repair what an audit has found: settle keys that are in no ledger, and restore a lost ledger.

Everything in doubt is left to a person.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from blocks.errors import KeyRotationError, NotFoundError
from blocks.openrouter.keys import ApiKey
from tasks.audit.compare import Comparison
from tasks.audit.findings import Finding, Kind
from tasks.audit.unrecorded import is_new
from tasks.model.events import Event
from tasks.model.keys import Marker, fingerprint, label_agrees, read_marker
from tasks.model.ledger import Ledger
from tasks.model.places import kept_places
from tasks.model.records import Budget, Current
from tasks.model.room import has_room_for_next
from tasks.model.rotation import Rotation
from tasks.model.terms import Terms, period_end
from tasks.model.times import show_time
from tasks.model.unrecorded import as_superseded
from tasks.model.written_off import searchable_text
from tasks.world.installation import made_here
from tasks.world.optional import read_uses
from tasks.world.ports import Deployed, KeyReader
from tasks.world.retirements import schedule_retirements
from tasks.world.run import Run

Holders = Callable[[str], list[str]]
"""Returns the destinations, among those that the audit has read, that hold a key with this label."""
UNRECORDED = {Kind.ORPHAN, Kind.HELD_KEY_UNRECORDED}
RESOLVED_BY_CURRENT_KEY = {
    Kind.DESTINATION_DIFFERS,
    Kind.CURRENT_KEY_UNUSABLE,
    Kind.ROTATION_OVERDUE,
    Kind.KEY_EXPIRING,
}
"""Findings that are resolved once the key that the destinations hold is the current one."""


class Repair(NamedTuple):
    """What a repair did about a finding, or why it did nothing."""

    done: str = ""
    why_not: str = ""


DELETED = Repair("It was deleted.")
CURRENT_AGAIN = Repair("It is the current key again.")


async def repair_unrecorded(
    run: Run,
    connection: str,
    hashes: Sequence[str],
    deployed: Deployed | None,
    holders: Holders,
    named: Collection[str],
) -> dict[str, Repair]:
    """Settle keys that are in no ledger, after verifying again all evidence about them.

    A key that every destination holds becomes the current one; a key that no destination holds is deleted if it was
    never used, else superseded. A key that only some destinations hold is left to the next rotation.

    Args:
        run: A run that holds the slot of the rotation in the keys' markers.
        connection: The audited connection.
        hashes: The keys' hashes.
        deployed: The rotation's deployment, if it has one.
        holders: Returns the destinations of other rotations that hold a key.
        named: The hashes in the account's lists.

    Returns:
        The outcome for each hash.

    Raises:
        KeyRotationError: Something could not be read, so nothing was changed.
    """
    ledger = await run.load()
    ledgers = [value async for _, value in run.world.ledgers()]
    # Including those of copied or renamed deployments, whose runs publish there.
    destinations = sorted({*ledger.destinations(), *await run.world.destinations_of(run.name)})
    outcomes: dict[str, Repair] = {}
    keys: list[ApiKey] = []
    for key_hash in hashes:
        try:
            keys.append(await (await run.world.connection(connection)).get_key(key_hash))
        except NotFoundError:
            outcomes[key_hash] = DELETED
        except KeyRotationError as error:
            outcomes[key_hash] = Repair(why_not=str(error))
    ours = await made_here(run.world, filter(None, [read_marker(key.name) for key in keys]), ledgers)
    # As text, so that the keys in an unreadable ledger count, too.
    texts = [searchable_text(value) for value in ledgers]
    certain: list[ApiKey] = []
    for key in keys:
        if why := _why_kept(run, key, ours, texts, destinations):
            outcomes[key.hash] = Repair(why_not=why)
        else:
            certain.append(key)
    if certain:
        await run.read_destinations(destinations)
    for key in certain:
        held = [name for name in destinations if label_agrees(key.label, run.contents[name].value)]
        try:
            holding = sorted({*held, *holders(key.label)})
            outcomes[key.hash] = await _repair_key(run, connection, key, deployed, holding, is_named=key.hash in named)
        except KeyRotationError as error:
            outcomes[key.hash] = Repair(why_not=str(error))
    return outcomes


async def _repair_key(
    run: Run, connection: str, key: ApiKey, deployed: Deployed | None, holding: Sequence[str], *, is_named: bool
) -> Repair:
    rotation = deployed.rotation if deployed else None
    if holding:
        why = await _make_current(run, connection, key, rotation, holding)
        return Repair(why_not=why) if why else CURRENT_AGAIN
    used = key.last_used_at is not None or key.usage + key.byok_usage > 0 or await _was_called(run, connection, key)
    # OpenRouter refuses changes to a list that names a deleted key. At the end of an overlap, the key leaves it first.
    if not (used or is_named) or not key.is_live(run.world.now()):
        return await _delete(run, connection, key)
    mark = read_marker(key.name)
    if mark is None or rotation is None:
        return Repair(why_not="it has been used, and without a valid deployment nobody knows its overlap.")
    until = run.world.now() + rotation.overlap
    with_it = run.ledger.with_unrecorded([as_superseded(key, mark, connection, until)])
    if not has_room_for_next(with_it, rotation, run.identity.id, run.places, run.world.now()):
        return Repair(why_not="the ledger has no room for it; audit again when superseded keys have ended.")
    await run.write(with_it)
    await schedule_retirements(run, run.world.now())
    why = "has been used" if used else "is named in a list of the account"
    return Repair(f"It {why}, so it is superseded now and ends at {show_time(until)}.")


async def _was_called(run: Run, connection: str, key: ApiKey) -> bool:
    # A call of a free model costs nothing, and not every account shows when a key was last used.
    openrouter: KeyReader = await run.world.connection(connection)
    return bool(await read_uses(openrouter, key.hash, key.created_at, run.world.now()))


async def _make_current(
    run: Run, connection: str, key: ApiKey, rotation: Rotation | None, holding: Sequence[str]
) -> str | None:
    ledger, now = run.ledger, run.world.now()
    by_hand = f"it is held by {', '.join(holding)}. Run the rotation, which publishes a new key everywhere."
    if rotation is None or rotation.connection != connection or ledger.pending or ledger.removed:
        return by_hand
    if set(holding) != ledger.destinations() | set(rotation.destinations):
        return by_hand
    if ledger.current and not await _is_newer(run, key, ledger.current):
        return f"{by_hand} The ledger's current key is newer."
    if _why_in_doubt(rotation, (key,)):
        return by_hand
    current = await _current(run, rotation, key, now)
    if current is None:
        return by_hand
    await run.write(ledger.replaced(current, now + rotation.overlap, run.places_of(rotation.destinations)))
    await schedule_retirements(run, run.world.now())
    return None


async def _is_newer(run: Run, key: ApiKey, current: Current) -> bool:
    # Compare two times of OpenRouter's clock only. If the current key no longer exists, it was replaced.
    try:
        former = await (await run.world.connection(current.connection)).get_key(current.hash)
    except NotFoundError:
        return True
    return key.created_at > former.created_at


async def _delete(run: Run, connection: str, key: ApiKey) -> Repair:
    await run.guard()
    await (await run.world.connection(connection)).delete_key(key.hash)
    payload = {"key_label": key.label, "key_hash": key.hash, "connection": connection}
    await run.world.emit(Event.ORPHAN_REMOVED, run.name, **payload)
    return DELETED


def _why_kept(
    run: Run, key: ApiKey, ours: Collection[Marker], texts: Sequence[str], destinations: Sequence[str]
) -> str | None:
    mark = read_marker(key.name)
    if mark is None or mark.rotation != run.name or mark not in ours:
        return "it does not carry the marker of this installation."
    if is_new(key, run.world.now()):
        return "it was made less than an hour ago."
    ledger = run.ledger
    waiting = {entry.run_id for entry in (ledger.pending, *ledger.unresolved) if entry}
    if mark.run_id in waiting:
        return "the ledger still waits for it, and the next run of the rotation settles it."
    if key.hash in ledger.hashes() or any(key.hash in text for text in texts):
        return "it is in a ledger now."
    if not run.has_ledger or not destinations:
        return "without its rotation's ledger and destinations nobody knows who holds it."
    return None


async def restore_ledger(run: Run, connection: str, keys: tuple[ApiKey, ...], deployed: Deployed) -> str | None:
    """Restore a lost ledger, if all destinations of the rotation hold its only key.

    Args:
        run: A run that holds the rotation's slot.
        connection: The audited connection.
        keys: The rotation's keys that the audit found by their markers.
        deployed: The rotation's deployment.

    Returns:
        Why the ledger was not restored; `None` if it exists now.

    Raises:
        KeyRotationError: Something could not be read, so nothing was written.
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
    held = await run.read_destinations(rotation.destinations)
    secrets = [run.contents[name].value for name in rotation.destinations]
    mark = read_marker(key.name)
    agree = all(label_agrees(key.label, secret) for secret in secrets) and len(set(held.values())) == 1
    if mark is None or mark.rotation != run.name or not agree or not key.is_live(now):
        return None
    terms, budget = _terms_and_budget(rotation, key, now)
    return Current(
        hash=key.hash,
        label=key.label,
        fingerprint=fingerprint(secrets[0]) or "",
        made_by=mark.run_id,
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
    """Repair what is beyond doubt, one rotation after another."""
    wanted: dict[str, list[Finding]] = {}
    for finding in comparison.findings:
        if finding.rotation and finding.kind in UNRECORDED | {Kind.LEDGER_LOST}:
            wanted.setdefault(finding.rotation, []).append(finding)
    outcomes: dict[Finding, Finding] = {}
    for name, found in wanted.items():
        try:
            async with open_rotation(name) as run:
                outcomes |= await _repair_rotation(comparison, connection, found, run)
        except KeyRotationError as error:
            # For example, the slot was not free.
            outcomes |= {finding: _not_repaired(finding, str(error)) for finding in found}
    return [outcomes.get(finding, finding) for finding in comparison.findings]


async def _repair_rotation(
    comparison: Comparison, connection: str, findings: Sequence[Finding], run: Run
) -> dict[Finding, Finding]:
    deployed = comparison.deployed.get(run.name)
    hashes = [finding.key_hash for finding in findings if finding.kind in UNRECORDED]
    outcomes: dict[Finding, Finding] = {}
    repairs: dict[str, Repair] = {}
    try:
        if hashes:
            repairs = await repair_unrecorded(run, connection, hashes, deployed, comparison.holders, comparison.named)
        for finding in findings:
            if finding.kind in UNRECORDED:
                outcomes[finding] = _repaired(finding, repairs[finding.key_hash])
            elif deployed is not None:
                why = await restore_ledger(run, connection, comparison.lost[run.name].keys, deployed)
                outcomes[finding] = _repaired(finding, Repair("The ledger was written anew.", why or ""))
    except KeyRotationError as error:
        outcomes = {finding: outcomes.get(finding) or _not_repaired(finding, str(error)) for finding in findings}
    if CURRENT_AGAIN in repairs.values():
        others = [
            each for each in comparison.findings if each.rotation == run.name and each.kind in RESOLVED_BY_CURRENT_KEY
        ]
        outcomes |= {finding: replace(finding, repaired=True) for finding in others}
    return outcomes


def _repaired(finding: Finding, outcome: Repair) -> Finding:
    if outcome.why_not:
        return _not_repaired(finding, outcome.why_not)
    return replace(finding, sentence=f"{finding.sentence} {outcome.done}", repaired=True)


def _not_repaired(finding: Finding, why: str) -> Finding:
    return replace(finding, sentence=f"{finding.sentence} It was not repaired: {why}")
