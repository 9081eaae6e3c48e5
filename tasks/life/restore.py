"""Restore a superseded key: enable it again and make it the current one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from pydantic import SecretStr

from blocks.errors import ConfigurationError, NotFoundError
from blocks.openrouter.keys import ApiKey
from tasks.key.lists import note_lists_left
from tasks.life.recover import values_in_the_way
from tasks.model.decisions import outlives
from tasks.model.events import Event
from tasks.model.keys import fingerprint
from tasks.model.places import kept_places
from tasks.model.records import Current, MadeKey, Superseded
from tasks.model.rotation import EXPIRY_MARGIN
from tasks.model.terms import Terms
from tasks.model.times import show_time
from tasks.verify import wait_until_accepted
from tasks.world.consumers import deployed_rotation, overlap_of
from tasks.world.run import NewKey, Run, VerifiedKey

UNFINISHED_FOR = timedelta(days=1)
"""How long an enabled key stays valid if its restoration is never finished."""
CHANGEABLE = {"limit", "limit_reset", "include_byok_in_limit"}
"""The settings of a key that OpenRouter can change; a separate call assigns the guardrail."""


async def find_restorable(run: Run, label: str) -> NewKey:
    """Find the key to restore, and its plaintext in an older version of a destination, without changing anything.

    Args:
        run: The run, whose ledger is loaded.
        label: The key's label; empty for the most recently superseded key.

    Returns:
        The key with its plaintext.

    Raises:
        ConfigurationError: There is no such key, or no destination stores it; nothing was changed.
        ServiceError: A destination failed.
    """
    ledger = run.ledger
    if ledger.removed:
        raise ConfigurationError(f"rotation: {run.name} was removed, so no key can be restored. Nothing was changed.")
    if ledger.current is None or ledger.pending is not None:
        raise ConfigurationError(
            f"rotation: the last rotation of {run.name} has not ended yet; retry it first. Nothing was changed."
        )
    if not ledger.superseded:
        raise ConfigurationError(
            f"Nothing to restore: rotation {run.name} has no superseded key (an emergency deletes all older keys). "
            "Nothing was changed."
        )
    chosen = [key for key in ledger.superseded if label in ("", key.label)]
    if not chosen:
        raise ConfigurationError(
            f"label: rotation {run.name} has no superseded key with this label; its superseded keys are "
            f"{', '.join(key.label for key in ledger.superseded)}. Nothing was changed."
        )
    key = chosen[-1]
    if key.revoking:
        raise ConfigurationError(
            f"label: the revocation of the key {key.label} has begun, so it cannot be restored. Nothing was changed."
        )
    if not key.fingerprint:
        raise ConfigurationError(
            f"label: the fingerprint of the key {key.label} was lost with an earlier ledger, so it cannot be found in "
            "a destination. Nothing was changed."
        )
    await _refuse_to_overwrite(run, await run.read_destinations(ledger.current.destinations))
    secret = await _kept_by_a_destination(run, ledger.current, key)
    if secret is None:
        raise ConfigurationError(
            f"rotation: none of {', '.join(ledger.current.destinations)} keeps the key {key.label} any more: Vault "
            "keeps only the newest versions of a secret, and other stores keep none. Nothing was changed."
        )
    return NewKey(secret, key)


async def _refuse_to_overwrite(run: Run, fingerprints: Mapping[str, str | None]) -> None:
    others = values_in_the_way(run, fingerprints)
    rotation = await deployed_rotation(run) if others else None
    if others := [name for name in others if not rotation or name not in rotation.overwrite]:
        raise ConfigurationError(
            f"rotation: the restored key would replace a value that is not an OpenRouter key in {', '.join(others)}, "
            "which pointed to another place when the rotation last published there. Correct that block, or, if that "
            "value may be lost, name that destination in overwrite. Nothing was changed."
        )


async def _kept_by_a_destination(run: Run, current: Current, key: Superseded) -> SecretStr | None:
    for name in current.destinations:
        held = run.contents[name].value
        if held is not None and fingerprint(held) == key.fingerprint:
            return held
    for name in current.destinations:
        destination = await run.world.destination(name)
        if found := await destination.read_older(lambda secret: fingerprint(secret) == key.fingerprint):
            return found
    return None


async def enable(run: Run, key: NewKey) -> VerifiedKey:
    """Enable a superseded key, and verify that it works.

    The ledger first sets when it ends, so that a run killed here leaves no key without an end.

    Raises:
        ConfigurationError: The key no longer exists at OpenRouter, or expires too soon; then nothing was changed.
        VerificationError: OpenRouter does not accept the enabled key in time.
        ServiceError: OpenRouter failed.
    """
    ledger, now = run.ledger, run.world.now()
    entry = next(entry for entry in ledger.superseded if entry.hash == key.record.hash)
    openrouter = await run.world.connection(entry.connection)
    end = max(entry.revoke_at, now + UNFINISHED_FOR)
    await note_lists_left(run, entry)
    changes = {"disabled": False, "at_once": False, "revoke_at": end, "overlap_ends": end, "capped": None}
    replaced = ledger.current
    terms = replaced.terms if replaced and replaced.terms else Terms()
    settings = terms.model_dump(include=CHANGEABLE) if replaced and replaced.terms else {}
    try:
        await _refuse_what_expires_too_soon(run, await openrouter.get_key(entry.hash))
        await run.write(ledger.changed(entry.hash, **changes))
        # A guardrail belongs to an account, so it fits only a key of the same connection.
        if terms.guardrail_id and replaced and replaced.connection == entry.connection:
            await openrouter.assign_guardrail(terms.guardrail_id, entry.hash)
        found = await openrouter.update_key(entry.hash, disabled=False, **settings)
    except NotFoundError:
        raise ConfigurationError(
            f"label: the key {entry.label}, or the guardrail of the key that it replaces, does not exist at OpenRouter "
            "any more, so the key cannot be restored. The current key stays as it is."
        ) from None
    if found.expires_at is not None:
        run.warn(f"The key {entry.label} expires at {show_time(found.expires_at)}: rotate before that.")
    await wait_until_accepted(run, key)
    return VerifiedKey(key.secret, key.record, found)


async def _refuse_what_expires_too_soon(run: Run, key: ApiKey) -> None:
    if key.expires_at is None or outlives(key.expires_at, run.world.now(), await _time_to_replace(run)):
        return
    raise ConfigurationError(
        f"label: the key {key.label} is valid only until {show_time(key.expires_at)}, so it may expire before the next "
        "rotation has replaced it: start a rotation instead, which makes a new key. Nothing was changed."
    )


async def _time_to_replace(run: Run) -> timedelta:
    # This run's own deployment is that of restore-key, and has no schedule.
    async for deployed in run.world.deployments():
        if deployed.name == run.name and deployed.rotation:
            return deployed.rotation.time_to_replace(deployed.interval)
    return EXPIRY_MARGIN


async def make_current_again(run: Run, key: NewKey) -> None:
    """Record that every destination holds the restored key, and when the replaced one ends.

    Args:
        run: The run.
        key: The restored key, as OpenRouter enabled it.

    Raises:
        OtherRunError: Another run has taken over.
        ServiceError: Prefect's API failed.
    """
    overlap = await overlap_of(run)
    ledger, now = run.ledger, run.world.now()
    former = ledger.current
    if former is None:
        return
    entry = next(entry for entry in ledger.superseded if entry.hash == key.record.hash)
    places = run.places_of(former.destinations)
    current = Current(
        **entry.without_returned_places(places).model_dump(include=set(MadeKey.model_fields)),
        since=now,
        rotated_by=run.identity.id,
        destinations=former.destinations,
        places=kept_places(former.destinations, places),
        # It has been given the settings of the key that it replaces, but not its expiry.
        terms=former.terms and former.terms.model_copy(update={"expires_at": key.made and key.made.expires_at}),
        inherits=former.inherits,
        late_until=await _late_until(run, entry, former.destinations),
    )
    await run.write(ledger.replaced(current, now + overlap, places))
    await run.world.emit(Event.KEY_RESTORED, run.name, **key.record.as_payload())


async def _late_until(run: Run, key: Superseded, destinations: Iterable[str]) -> datetime | None:
    """Return until when a write of the key may take effect: one of this run, or one from before it was superseded.

    The writes of an earlier attempt of this run are unknown: if a destination allows late writes, assume one.
    """
    late = await run.longest_late_writes(destinations)
    moments = [key.late_until, run.world.now() + late if late else None]
    return max((moment for moment in moments if moment), default=None)
