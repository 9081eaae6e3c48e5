"""Replace a rotation's keys in the account's lists of keys: add the successor, remove the dead key.

What remains to do is derived from the lists each time, so a killed run is continued by the next one. OpenRouter
replaces a list as a whole, without check-and-set, so each write is read back, and repeated if the list differs.
"""

from __future__ import annotations

from collections.abc import Collection
from random import uniform

from blocks.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    KeyRotationError,
    NotFoundError,
    NotYetAcceptedError,
    OtherRunError,
    RejectedError,
    ServiceError,
)
from blocks.openrouter.keys import ApiKey
from blocks.openrouter.lists import KeyList
from tasks.key.patience import ACCEPTED_WITHIN, Patience
from tasks.model.lists import predecessors_of, replaced, successor_of
from tasks.model.records import Current, MadeKey, Superseded
from tasks.model.rotation import Rotation
from tasks.world.account import has_workspace
from tasks.world.optional import Part, if_available, read_lists
from tasks.world.ports import OpenRouter
from tasks.world.run import Run

MAX_LIST_WRITES = 5
"""How often a list is written at most, while others change it at the same time."""
READ_BACK_AFTER_SECONDS = 1.0
"""How long to wait before reading a list back: a concurrent writer may still replace it with what it has read."""
BAD_REQUEST = 400
_REFUSALS = (ForbiddenError, NotFoundError, RejectedError)
INHERIT_OFF = (
    "because rotation.key.inherit is off: name the new key there at OpenRouter, or switch it on and rotate again "
    "before the old key is revoked."
)
OTHER_WORKSPACE = (
    "because it is in another workspace, which they do not serve: name it at OpenRouter in what serves its own one, "
    "or change rotation.key.workspace_id back and rotate again before the old key is revoked."
)


async def carry_over(run: Run, key: MadeKey, *, inherit: bool) -> None:
    """Add a key to every list that names a key that it replaces.

    Args:
        run: The run.
        key: The successor, which OpenRouter accepts already.
        inherit: Whether it joins its predecessors' lists; otherwise these are only noted.

    Raises:
        NotYetAcceptedError: A list did not know the key in time; nothing was published.
        OtherRunError: Another run has taken over.
        ServiceError: A list cannot be read or changed; nothing was published.
    """
    try:
        await _carry_over(run, key, inherit=inherit)
    except OtherRunError:
        raise
    except KeyRotationError as error:
        # In an emergency, no failure about lists may keep a leaked key alive.
        if not run.identity.emergency:
            raise
        run.failures.append(error)


async def _carry_over(run: Run, key: MadeKey, *, inherit: bool) -> None:
    former, current = predecessors_of(run.ledger, key.hash, inherit=inherit), run.ledger.current
    run.lists.pop((key.connection, key.workspace_id), None)
    naming, left = await _lists_naming(run, former, current, key.connection, key.workspace_id)
    if naming or current is None or current.made_by is None:
        await note_logging(run, key.connection, key.workspace_id)
    for sentence in not_carried_over(naming, left, inherit=inherit):
        run.note(sentence)
    if not inherit:
        return
    # One for all lists, so that their number does not delay an emergency.
    patience = Patience(run.world)
    for each in naming:
        try:
            await _change(run, key, each, (), key.hash, patience)
        except _REFUSALS as error:
            raise type(error)(
                f"The new key {key.label} could not be added to the {each}, which names the key that it replaces: "
                f"{_why(error)} Nothing was published.",
                status=error.status,
            ) from None


async def _lists_naming(
    run: Run, former: Collection[str], current: Current | None, connection: str, workspace_id: str | None
) -> tuple[list[KeyList], list[KeyList]]:
    """Return the lists that name the former keys: those of the successor's workspace, and those that it has left."""
    if not former:
        return [], []
    naming = naming_any(await lists_of(run, connection, workspace_id), former)
    if current is None or None in (workspace_id, current.workspace_id) or current.workspace_id == workspace_id:
        return naming, []
    try:
        found = await lists_of(run, current.connection, current.workspace_id)
    except (ConfigurationError, ServiceError) as error:
        if not run.concerns_former_connection(current.connection, error):
            raise
        found = []
    # A list for all workspaces is returned for each of them.
    joined = {each.id for each in naming}
    return naming, [each for each in naming_any(found, former) if each.id not in joined]


def not_carried_over(naming: Collection[KeyList], left: Collection[KeyList], *, inherit: bool) -> list[str]:
    """Return the sentences about lists that the new key does not join.

    Args:
        naming: The lists of its workspace that name a key that it replaces.
        left: Those of the workspace of the key that it replaces, if that is another one.
        inherit: Whether the new key inherits.
    """
    lost = [(left, OTHER_WORKSPACE), (() if inherit else naming, INHERIT_OFF)]
    return [
        f"The old key is in the {', '.join(str(each) for each in lists)}, and the new one is not, {why}"
        for lists, why in lost
        if lists
    ]


def naming_any(lists: Collection[KeyList], hashes: Collection[str]) -> list[KeyList]:
    """Return the lists that name at least one of some keys."""
    return [each for each in lists if set(each.hashes or ()) & set(hashes)]


async def lists_of(run: Run, connection: str, workspace_id: str | None) -> list[KeyList]:
    """Read the lists of a workspace that name keys, once per run.

    Args:
        run: The run.
        connection: The connection.
        workspace_id: The workspace; the account's default one if omitted.

    Returns:
        The lists; kinds that the account lacks are left out.

    Raises:
        ServiceError: OpenRouter failed.
    """
    workspace = connection, workspace_id
    if workspace not in run.lists:
        try:
            run.lists[workspace] = await read_lists(await run.world.connection(connection), workspace_id, run.note)
        except RejectedError:
            # The workspace was deleted, or belongs to another account.
            if await has_workspace(run, connection, workspace_id):
                raise
            run.lists[workspace] = []
    return run.lists[workspace]


async def lists_ahead(run: Run, rotation: Rotation, adopted: Current | None) -> list[str]:
    """Return the changes that a rotation would make to the account's lists, in sentences.

    Args:
        run: The run, which has loaded the ledger.
        rotation: The rotation.
        adopted: The key that it would adopt first, if any.

    Raises:
        ServiceError: OpenRouter failed.
    """
    current, pending = adopted or run.ledger.current, run.ledger.pending
    successor = pending.key.hash if pending and pending.key else ""
    former = predecessors_of(run.ledger, successor, inherit=rotation.key.inherit)
    if adopted:
        former |= {adopted.hash}
    workspace_id = rotation.key.workspace_id or (current.workspace_id if current else None)
    await note_logging(run, rotation.connection, workspace_id)
    naming, left = await _lists_naming(run, former, current, rotation.connection, workspace_id)
    joined = naming if rotation.key.inherit else []
    return [
        *(f"Add it to the {each}, which names the key that it replaces." for each in joined),
        *not_carried_over(naming, left, inherit=rotation.key.inherit),
    ]


async def note_logging(run: Run, connection: str, workspace_id: str | None) -> None:
    """Note a workspace that logs chosen keys only: it names them by ids that no API resolves."""
    if workspace_id is None:
        return
    openrouter = await run.world.connection(connection)
    workspace = await if_available(Part.WORKSPACES, openrouter.workspace(workspace_id), run.note)
    if workspace and workspace.logs_chosen_keys:
        run.note(
            f"The workspace {workspace_id} logs chosen keys only, and its choice cannot be carried over: choose the "
            "new key there at OpenRouter, if it is to be logged."
        )


async def take_out(run: Run, key: Superseded, *, may_return: bool = False) -> None:
    """Remove a superseded key from every list, because OpenRouter refuses changes to a list with a dead key.

    Its successor joins the list, if it is meant to. If OpenRouter refuses the change, waiting does not help, so the
    refusal is noted and the key is revoked all the same.

    Args:
        run: The run.
        key: The key, whose revocation is announced in the ledger.
        may_return: Whether it can still be restored, so that the lists that no successor joins are noted.

    Raises:
        OtherRunError: Another run has taken over.
        ServiceError: A list could not be read or changed, for a reason that may pass.
    """
    vacant: list[str] = []
    for each in naming_any(await lists_of(run, key.connection, key.workspace_id), [key.hash]):
        into = successor_of(run.ledger, key, each.workspace_id)
        try:
            found = await _change(run, key, each, [key.hash], into)
        except NotFoundError:
            continue
        except _REFUSALS as error:
            run.note(f"The revoked key {key.label} could not be taken out of the {each}: {_why(error)}")
        else:
            if into is None and key.hash not in (found.hashes or (key.hash,)):
                vacant.append(str(each))
    if vacant and may_return:
        run.note(
            f"The key {key.label} was taken out of the {', '.join(vacant)}, which no other key has joined: name it "
            "there again at OpenRouter if it is restored."
        )


async def note_lists_left(run: Run, key: Superseded) -> None:
    """Note the lists that a disabled key, which is to be restored, may have been in, and that no successor has joined.

    Raises:
        ServiceError: OpenRouter failed.
    """
    if not key.disabled or successor_of(run.ledger, key, key.workspace_id):
        return
    known = {key.hash, *predecessors_of(run.ledger, key.hash, inherit=True)}
    lists = await lists_of(run, key.connection, key.workspace_id)
    if others := [str(each) for each in lists if known.isdisjoint(each.hashes or ())]:
        run.note(
            f"The key {key.label} was taken out of lists when it was disabled, and no other key has joined them: name "
            f"it at OpenRouter in those that it needs of the {', '.join(others)}."
        )


def _why(error: ServiceError) -> str:
    match error:
        case NotFoundError():
            return "it does not exist any more. Start the rotation again."
        case ForbiddenError():
            return "the management key may not change it. Use a management key that may, or change the list by hand."
        case _ if error.status == BAD_REQUEST:
            return f"{error} One of the other keys that it names may be disabled: take that one out at OpenRouter."
        case _:
            return str(error)


async def _change(
    run: Run, key: MadeKey, which: KeyList, out: Collection[str], into: str | None, patience: Patience | None = None
) -> KeyList:
    openrouter = await run.world.connection(key.connection)
    dead: set[str] = set()
    alive: set[str] = set()
    failure: ServiceError | None = None
    written = 0
    while True:
        # Immediately before the read: nothing may widen the gap to the write, in which another change would be lost.
        await run.guard()
        found = await openrouter.key_list(which.kind, which.id)
        wanted = replaced(found.hashes or (), {*out, *dead}, into)
        if found.hashes is None or wanted == found.hashes:
            return found
        if not wanted:
            run.note(
                f"The {found} names only {key.label}, which is revoked, so it serves no key: add another key to it at "
                "OpenRouter. Its list was left as it is, because an empty one could open it to every key."
            )
            return found
        _refuse_another_write(which, written, failure)
        _refuse_if_full(found, wanted)
        try:
            await openrouter.replace_keys(found, wanted)
        except RejectedError as error:
            if error.status != BAD_REQUEST:
                raise
            gone, unusable = await _not_live_among(run, openrouter, wanted, {*alive, into})
            alive |= set(wanted) - gone - unusable
            if not gone:
                # If no other key can be the cause, the list does not know the new one yet.
                await _wait_for_list(key, found, error, None if unusable or into in found.hashes else patience)
                continue
            what = "a key that is dead" if len(gone) == 1 else f"{len(gone)} keys that are dead"
            run.note(f"The {found} named {what}, so that nobody could change it: taken out.")
            dead |= gone
        except ServiceError as error:
            # The next read shows whether the write took effect.
            if not (error.outcome_unknown or error.retryable or isinstance(error, ConflictError)):
                raise
            failure = error
        written += 1
        # Only an added key needs this wait: a removed one is deleted next, and then no list can name it again.
        if into is not None and into not in found.hashes and set(wanted) - run.ledger.hashes():
            # Randomised, so that two runs do not retry in step.
            await run.world.sleep(uniform(READ_BACK_AFTER_SECONDS, 2 * READ_BACK_AFTER_SECONDS))  # noqa: S311


def _refuse_another_write(which: KeyList, written: int, failure: ServiceError | None) -> None:
    if written == MAX_LIST_WRITES:
        raise failure or ServiceError(
            f"The {which} was changed by others each of the {MAX_LIST_WRITES} times that it was written. Retry.",
            retryable=True,
        )


async def _wait_for_list(key: MadeKey, which: KeyList, error: ServiceError, patience: Patience | None) -> None:
    if patience is None:
        raise error
    if not await patience.wait():
        raise NotYetAcceptedError(
            f"The {which} still refuses the key {key.label} after {ACCEPTED_WITHIN.total_seconds():.0f} seconds, "
            f"although every other key that it names is live: {error} Nothing was published."
        ) from None


def _refuse_if_full(found: KeyList, wanted: Collection[str]) -> None:
    most = found.kind.most
    if most is not None and len(wanted) > most:
        raise RejectedError(f"it names {most} keys already, the maximum. Take out a key that nobody uses, then retry.")


async def _not_live_among(
    run: Run, openrouter: OpenRouter, hashes: Collection[str], skipped: Collection[str | None]
) -> tuple[set[str], set[str]]:
    """Return the keys because of which OpenRouter refuses a list.

    Returns:
        Those to take out: missing ones, and disabled ones of this rotation; and those of others that are not usable.
    """
    dead, unusable = set[str](), set[str]()
    ours, now = run.ledger.hashes(), run.world.now()
    for key_hash in dict.fromkeys(hashes):
        if key_hash in skipped:
            continue
        try:
            key: ApiKey = await openrouter.get_key(key_hash)
        except NotFoundError:
            dead.add(key_hash)
        else:
            if not key.is_live(now):
                (dead if key_hash in ours else unusable).add(key_hash)
    return dead, unusable
