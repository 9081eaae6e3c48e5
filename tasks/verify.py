"""Verify a key: use it, and compare its name and settings with the requested ones."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import NotFoundError, NotYetAcceptedError, VerificationError
from blocks.foreign import harmless
from blocks.openrouter.keys import ApiKey, KeyRequest, Standing
from tasks.key.patience import ACCEPTED_WITHIN, Patience
from tasks.key.terms import request_of
from tasks.model.events import Event
from tasks.model.keys import read_marker, without_marker
from tasks.model.rotation import MAX_KEY_NAME, Rotation
from tasks.model.terms import Terms
from tasks.world.ports import KeyReader
from tasks.world.run import NewKey, Run, VerifiedKey


async def verify_key(run: Run, rotation: Rotation, key: NewKey) -> VerifiedKey:
    """Verify that a key works and has the requested name and settings.

    Raises:
        VerificationError: OpenRouter did not accept it in time, or its name or settings differ.
        ServiceError: OpenRouter failed.
    """
    await wait_until_accepted(run, key)
    found, wanted = await _as_made(run, key), _wanted(run, rotation)
    if not names_agree(found.name, wanted.name):
        stored, asked = (harmless(name, MAX_KEY_NAME) for name in (found.name, wanted.name))
        raise VerificationError(
            f"OpenRouter stored the name of the key {key.record.label} as `{stored}`, not as the "
            f"`{asked}` that was asked for. Without its whole name a lost key could not be found again: "
            "shorten rotation.key.name."
        )
    differences = settings_that_differ(found, wanted)
    if differences:
        raise VerificationError(
            f"OpenRouter made the key {key.record.label} with other settings than asked for: {', '.join(differences)}."
        )
    await run.world.emit(Event.KEY_VERIFIED, run.name, **key.record.as_payload())
    return VerifiedKey(key.secret, key.record)


async def _as_made(run: Run, key: NewKey) -> ApiKey:
    if key.made is not None:
        return key.made
    openrouter: KeyReader = await run.world.connection(key.record.connection)
    return await openrouter.get_key(key.record.hash)


async def wait_until_accepted(run: Run, key: NewKey) -> None:
    """Use a key, new or enabled again, until OpenRouter accepts it.

    Raises:
        NotYetAcceptedError: OpenRouter did not accept it in time.
        ServiceError: OpenRouter failed.
    """
    openrouter: KeyReader = await run.world.connection(key.record.connection)
    patience = Patience(run.world)
    while not (standing := await openrouter.accepts(key.secret)):
        if not await patience.wait():
            raise NotYetAcceptedError(
                f"OpenRouter still does not accept the key {key.record.label} "
                f"after {ACCEPTED_WITHIN.total_seconds():.0f} seconds."
            )
    if standing is Standing.NO_BUDGET:
        run.note(f"The key {key.record.label} is valid, but its budget, its guardrail's or its workspace's is used up.")


def names_agree(found: str, wanted: str) -> bool:
    """Return whether a key's name at OpenRouter is the requested one; its marker may be at either end."""
    return (read_marker(found), without_marker(found)) == (read_marker(wanted), without_marker(wanted))


def settings_that_differ(key: ApiKey, wanted: KeyRequest) -> list[str]:
    """Return the names of the settings in which a key at OpenRouter differs from the request."""
    pairs: dict[str, tuple[object, object]] = {
        "disabled": (key.disabled, False),
        "limit": (key.limit, wanted.limit),
        "limit_reset": (key.limit_reset, wanted.limit_reset),
        "include_byok_in_limit": (key.include_byok_in_limit, wanted.include_byok_in_limit),
    }
    for name in ("workspace_id", "creator_user_id", "expires_at"):
        # OpenRouter chooses what the request leaves open.
        if getattr(wanted, name) is not None:
            pairs[name] = (getattr(key, name), getattr(wanted, name))
    return [name for name, (found, asked) in pairs.items() if found != asked]


async def can_be_finished(run: Run, rotation: Rotation, key: NewKey) -> bool:
    """Return whether a key that an earlier run left half-published can be finished.

    It must still exist, be valid, and have the connection, name and settings that the rotation asks for now.

    Raises:
        ServiceError: OpenRouter failed.
    """
    pending, now = run.ledger.pending, run.world.now()
    if pending is None or pending.connection != rotation.connection:
        return False
    if not _still_asked_for(pending.terms or Terms(), rotation, now):
        return False
    openrouter: KeyReader = await run.world.connection(key.record.connection)
    try:
        found = await openrouter.get_key(key.record.hash)
    except NotFoundError:
        return False
    expired = found.expires_at is not None and found.expires_at <= now
    wanted = _wanted(run, rotation)
    return not expired and names_agree(found.name, wanted.name) and not settings_that_differ(found, wanted)


def _still_asked_for(terms: Terms, rotation: Rotation, now: datetime) -> bool:
    asked = rotation.key.terms(now).model_copy(update={"expires_at": terms.expires_at})
    if rotation.key.inherit:
        asked = asked.or_else(terms).model_copy(update={"expires_at": terms.expires_at})
    return asked == terms


def _wanted(run: Run, rotation: Rotation) -> KeyRequest:
    pending, now = run.ledger.pending, run.world.now()
    if pending is None:
        return rotation.key.terms(now).request(rotation.key_name(run.identity.id, now, run.ledger.installation))
    return request_of(pending, rotation.key_name(pending.run_id, pending.intended_at, run.ledger.installation))
