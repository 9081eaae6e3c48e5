"""Create a key: announce it in the ledger, request it once, record the answer."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import (
    ConfigurationError,
    ForbiddenError,
    LedgerError,
    NotFoundError,
    OtherRunError,
    RejectedError,
    ServiceError,
)
from blocks.foreign import harmless
from blocks.http import MAX_WAIT_SECONDS
from blocks.openrouter.keys import CreatedKey
from tasks.key.terms import agree_on_terms, request_of
from tasks.key.unrecorded import settle_intent
from tasks.model.events import Event
from tasks.model.keys import fingerprint
from tasks.model.records import MadeKey, Pending
from tasks.model.room import has_room_for, intent_of
from tasks.model.rotation import Rotation
from tasks.world.ports import KeyChanger, KeyMinter
from tasks.world.run import NewKey, Run

LONGEST_ID = 80
"""How many characters of a member's id an error quotes."""


async def create_key(run: Run, rotation: Rotation) -> NewKey:
    """Create the rotation's next key, and write its hash and fingerprint into the ledger.

    The request is sent once. If its outcome is unknown, the key is searched for by its marker and deleted before the
    single repetition, so that no orphan remains.

    Raises:
        LedgerError: The ledger has no room for another key; nothing was created.
        OtherRunError: Another run has taken over; the new key was deleted.
        ServiceError: OpenRouter failed.
    """
    try:
        created = await _create_or_settle(run, rotation)
    except ServiceError as error:
        # The key of an unsettled create may still turn up, and a second intent would overwrite the first in the ledger.
        if run.ledger.pending is not None or not (error.outcome_unknown and error.retryable):
            raise
        if (error.retry_after or 0) > MAX_WAIT_SECONDS:
            raise
        await run.world.sleep(error.retry_after or 0)
        try:
            created = await _create_or_settle(run, rotation)
        except LedgerError:
            # The create that was not answered takes the room, and that passes by itself.
            raise error from None
    record = MadeKey(
        hash=created.key.hash,
        label=created.key.label,
        fingerprint=fingerprint(created.secret) or "",
        made_by=run.identity.id,
        connection=rotation.connection,
        workspace_id=created.key.workspace_id,
    )
    try:
        await run.write(run.ledger.created(record))
    except OtherRunError:
        # The run that took over may have searched before this key existed; then no other run will ever find it.
        if not await run.is_recorded(record.hash):
            await (await run.world.connection(rotation.connection)).delete_key(record.hash)
        raise
    await run.world.emit(Event.KEY_CREATED, run.name, **record.as_payload())
    await _assign_guardrail(run, record)
    return NewKey(created.secret, record, created.key)


async def _assign_guardrail(run: Run, key: MadeKey) -> None:
    # Before the key is published, so that consumers never get one without its guardrail.
    pending = run.ledger.pending
    if pending is None or pending.terms is None or pending.terms.guardrail_id is None:
        return
    openrouter: KeyChanger = await run.world.connection(key.connection)
    await run.guard()
    try:
        await openrouter.assign_guardrail(pending.terms.guardrail_id, key.hash)
    except NotFoundError:
        raise ConfigurationError(
            f"rotation.key.guardrail_id: the connection {key.connection} knows no such guardrail. The new key "
            f"{key.label} was not published; the next run deletes it."
        ) from None


async def _create_or_settle(run: Run, rotation: Rotation) -> CreatedKey:
    now = run.world.now()
    openrouter: KeyMinter = await run.world.connection(rotation.connection)
    intent = await _announce(run, rotation, now)
    try:
        return await openrouter.create_key(
            request_of(intent, rotation.key_name(run.identity.id, now, run.ledger.installation))
        )
    except ServiceError as error:
        await settle_intent(run, certain=not error.outcome_unknown)
        creator = intent.terms and intent.terms.creator_user_id
        if creator and isinstance(error, RejectedError | ForbiddenError):
            raise type(error)(
                f"{error} The key would be created for the member {harmless(creator, LONGEST_ID)}. If they have left "
                "the organization, set rotation.key.creator_user_id to another member.",
                status=error.status,
            ) from error
        raise


async def _announce(run: Run, rotation: Rotation, now: datetime) -> Pending:
    terms, budget = await agree_on_terms(run, rotation, now)
    intent = intent_of(rotation, run.identity.id, run.places, now, terms, budget)
    if not has_room_for(intent, run.ledger, rotation.retirement):
        raise LedgerError(
            f"The ledger has no room for another key, because it holds {len(run.ledger.superseded)} superseded "
            "ones; nothing was created. Shorten the overlap or rotate less often."
        )
    installation = run.ledger.installation or await run.world.installation()
    await run.write(run.ledger.intended(intent, installation))
    return intent
