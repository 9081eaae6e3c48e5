"""Create a key: announce it, ask for it once, write down what came back."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import LedgerError, ServiceError
from blocks.openrouter import CreatedKey
from tasks.ledger import MAX_LEDGER_BYTES, MadeKey, Pending, fingerprint
from tasks.lost import settle_intent
from tasks.rotation import Rotation
from tasks.run import NewKey, Run
from tasks.task import secret_task

LEDGER_RESERVE_BYTES = 600
"""Room kept free in the ledger for what a failure may have to add."""


async def create_key(run: Run, rotation: Rotation) -> NewKey:
    """Create the rotation's next key.

    The call to OpenRouter is made once. Where its outcome is not known, the key is looked for by its marker and deleted
    before the one other attempt, so that no key is left behind.

    Args:
        run: The run.
        rotation: What key to ask for.

    Returns:
        The key, whose hash and fingerprint are in the ledger.

    Raises:
        LedgerError: The ledger has no room for another key; nothing was created.
        ServiceError: OpenRouter failed.
    """
    try:
        created = await _create_or_settle(run, rotation)
    except ServiceError as error:
        if not (error.outcome_unknown and error.retryable):
            raise
        created = await _create_or_settle(run, rotation)
    record = MadeKey(
        hash=created.key.hash,
        label=created.key.label,
        fingerprint=fingerprint(created.secret) or "",
        made_by=run.identity.id,
        connection=rotation.connection,
        workspace_id=created.key.workspace_id,
    )
    await run.ledger.save(run.ledger.ledger.created(record))
    return NewKey(created.secret, record)


async def _create_or_settle(run: Run, rotation: Rotation) -> CreatedKey:
    now = run.world.now()
    openrouter = await run.world.connection(rotation.connection)
    await _announce(run, rotation, now)
    try:
        return await openrouter.create_key(rotation.key_request(run.identity.id, now))
    except ServiceError as error:
        await settle_intent(run, certain=not error.outcome_unknown)
        raise


async def _announce(run: Run, rotation: Rotation, now: datetime) -> None:
    if not has_room(run, rotation):
        raise LedgerError(
            f"The ledger has no room for another key, because it holds {len(run.ledger.ledger.superseded)} superseded "
            "ones; nothing was created. Shorten the overlap or rotate less often."
        )
    await run.ledger.save(run.ledger.ledger.intended(_intent(run, rotation, now)))


def _intent(run: Run, rotation: Rotation, now: datetime) -> Pending:
    return Pending(
        run_id=run.identity.id,
        connection=rotation.connection,
        workspace_id=rotation.key.workspace_id,
        destinations=tuple(rotation.destinations),
        intended_at=now,
    )


def has_room(run: Run, rotation: Rotation) -> bool:
    """Say whether the ledger can hold one more key through all of its states.

    Args:
        run: The run.
        rotation: The rotation.

    Returns:
        Whether it can, with some room left for what a failure may add.
    """
    intent = _intent(run, rotation, run.world.now())
    key = MadeKey(
        hash="0" * 64,
        label="0" * 24,
        fingerprint="0" * 16,
        made_by=intent.run_id,
        connection=intent.connection,
        workspace_id="0" * 36,
    )
    created = run.ledger.ledger.intended(intent).created(key)
    published = created.published(intent.run_id, intent.destinations, intent.intended_at, intent.intended_at)
    return max(created.size(), published.size()) + LEDGER_RESERVE_BYTES <= MAX_LEDGER_BYTES


create_key_task = secret_task("create-key")(create_key)
