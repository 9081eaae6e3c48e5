"""Plan a run: read everything, write nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from blocks.foreign import harmless
from tasks.key.lists import lists_ahead
from tasks.life.adopt import find_adoptable
from tasks.life.recover import is_key_among, observe, unknown_secrets
from tasks.model.decisions import NOTHING_TO_PUBLISH, Identity, Situation, emergency_is_done, keys_due
from tasks.model.durations import show_duration
from tasks.model.former_places import about_to_leave, left_behind
from tasks.model.ledger import Ledger
from tasks.model.rotation import MAX_KEY_NAME, Rotation
from tasks.world.ports import KeyReader
from tasks.world.run import Run, gather_all


async def check_everything(run: Run, rotation: Rotation) -> list[str]:
    """Check the connection and every destination, without writing.

    Returns:
        One sentence for each.

    Raises:
        KeyRotationError: Something does not work; the message says what.
    """
    openrouter: KeyReader = await run.world.connection(rotation.connection)
    destinations = [await run.world.destination(name) for name in rotation.destinations]
    return await gather_all([openrouter.check(), *(destination.check() for destination in destinations)])


async def plan(run: Run, rotation: Rotation) -> tuple[list[str], list[str]]:
    """Return what was checked, and the steps that a run would take now, as sentences.

    Raises:
        KeyRotationError: A run could not start; the message says why.
    """
    checked = await check_everything(run, rotation)
    situation = await observe(run, rotation)
    lists = await lists_ahead(run, rotation, await find_adoptable(run, rotation))
    places = run.places_of(rotation.destinations)
    steps = steps_ahead(situation, run.ledger, rotation, run.identity, run.world.now(), places, lists)
    unknown = unknown_secrets(run, rotation)
    for name in unknown:
        run.note(f"{name} holds a secret that the ledger does not know.")
    if is_key_among(unknown) and situation is not Situation.FIRST_RUN:
        steps.insert(1, "Look for keys that this rotation made and that its ledger does not know.")
    return checked, steps


def steps_ahead(
    situation: Situation,
    ledger: Ledger,
    rotation: Rotation,
    identity: Identity,
    now: datetime,
    places: Mapping[str, str],
    lists: Sequence[str],
) -> list[str]:
    """Return the steps that a run would take.

    Args:
        situation: The run's situation.
        ledger: The rotation's ledger.
        rotation: The rotation.
        identity: The run that asks.
        now: The current time, UTC.
        places: Where each destination points.
        lists: The changes to the account's lists of keys, in sentences.
    """
    steps = [f"Look at the ledger and the destinations: {situation.value}."]
    steps += _putting_right(situation, ledger)
    if situation not in NOTHING_TO_PUBLISH:
        steps += _rotating(situation, ledger, rotation, identity, lists)
        steps += about_to_leave(ledger, places, timedelta(0) if identity.emergency else rotation.usable_overlap)
    steps += left_behind(ledger)
    if identity.emergency and not emergency_is_done(ledger, identity, now):
        return steps + [f"Revoke the superseded key {key.label} at once." for key in ledger.superseded]
    return steps + [
        f"Check the superseded key {key.label}, which is due, and revoke it according to the retirement settings."
        for key in keys_due(ledger, identity, now)
    ]


def _putting_right(situation: Situation, ledger: Ledger) -> list[str]:
    label = ledger.pending.key.label if ledger.pending and ledger.pending.key else ""
    return {
        Situation.FIRST_RUN: ["Look for keys that this rotation made before its ledger was lost."],
        Situation.INTENT_WITHOUT_KEY: ["Look for the key of the interrupted create by its marker, and delete it."],
        Situation.KEY_UNPUBLISHED: [f"Delete the key {label}, which no destination holds."],
        Situation.KEY_GIVEN_UP: [f"Give the key {label} up: it becomes a superseded one."],
        Situation.KEY_PUBLISHED: [
            f"Finish the interrupted rotation with the key {label}, if it still has the rotation's settings."
        ],
    }.get(situation, [])


def _rotating(
    situation: Situation, ledger: Ledger, rotation: Rotation, identity: Identity, lists: Sequence[str]
) -> list[str]:
    steps = []
    if rotation.adopt and ledger.current is None:
        steps.append(f"Adopt the key with the hash {rotation.adopt}.")
    if situation is not Situation.KEY_PUBLISHED:
        steps.append(f"Create a key named `{harmless(rotation.key.name, MAX_KEY_NAME)}`, with date and marker.")
    steps += ["Verify it.", *lists]
    steps += [f"Publish it to `{name}` and read it back." for name in rotation.destinations]
    if ledger.current and identity.emergency:
        steps.append(f"Revoke the key {ledger.current.label} at once.")
    elif ledger.current:
        steps.append(f"Supersede the key {ledger.current.label}; its overlap is {show_duration(rotation.overlap)}.")
    return steps
