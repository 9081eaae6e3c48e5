"""The terms of the next key: the rotation's settings, inherited ones, and the rest of a carried budget."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import ConfigurationError, NotFoundError, ServiceError
from blocks.openrouter.keys import ApiKey, KeyRequest
from blocks.redaction import redacted
from tasks.key.budget import carried_over, settle_budget
from tasks.model.keys import label_agrees
from tasks.model.records import Budget, Current, MadeKey, Pending
from tasks.model.rotation import Rotation
from tasks.model.terms import Terms, settable_reset
from tasks.world.account import guardrail_of, has_workspace
from tasks.world.run import Run


async def agree_on_terms(run: Run, rotation: Rotation, now: datetime) -> tuple[Terms, Budget | None]:
    """Decide the terms of the next key, and how much of its budget is already spent.

    Returns:
        The terms, and the carried budget, if any.

    Raises:
        ConfigurationError: It is unknown which settings to inherit; nothing was created.
        ServiceError: OpenRouter failed; nothing was created.
    """
    if rotation.key.carry_budget and not run.identity.emergency:
        await settle_budget(run)
    terms, current = rotation.key.terms(now), run.ledger.current
    if current is None and rotation.key.inherit:
        current = await _found_again(run, rotation, now)
    if current is None or not (rotation.key.inherit or rotation.key.carry_budget):
        return terms, None
    former = await _former_key(run, current)
    if rotation.key.inherit:
        terms = terms.or_else(await _inherited(run, rotation, current, former))
    if former is None or not rotation.key.carry_budget:
        return terms, None
    return terms, carried_over(former, current.budget, terms, now)


async def _found_again(run: Run, rotation: Rotation, now: datetime) -> Current | None:
    """Return the key that consumers hold, if keys were found again after the ledger was lost."""
    found = [key for key in run.ledger.superseded if not key.fingerprint]
    if found:
        await run.read_destinations_once(rotation.destinations)
    # Keys that were given up since count, too: they have inherited the settings.
    candidates = run.ledger.superseded if found else ()
    held = [key for key in candidates if any(label_agrees(key.label, place.value) for place in run.contents.values())]
    if found and not held:
        raise ConfigurationError(
            "rotation.key.inherit: the ledger was lost, and no destination holds one of the keys that were found "
            "again, so nobody knows what to inherit. Name the settings on the rotation, and switch inherit off. "
            "Nothing was created."
        )
    if not held:
        return None
    return Current(**held[-1].model_dump(include=set(MadeKey.model_fields)), since=now, destinations=())


async def _former_key(run: Run, current: Current) -> ApiKey | None:
    try:
        return await (await run.world.connection(current.connection)).get_key(current.hash)
    except NotFoundError:
        pass
    except (ConfigurationError, ServiceError) as error:
        if not run.concerns_former_connection(current.connection, error):
            raise
    run.note(f"The key {current.label} cannot be read any more: its settings are those that the ledger remembers.")
    return None


async def _inherited(run: Run, rotation: Rotation, current: Current, former: ApiKey | None) -> Terms:
    terms = await _terms_of(run, rotation, current, former) if former else current.terms or Terms()
    moved = former is None or current.connection != rotation.connection
    if moved and not await has_workspace(run, rotation.connection, current.workspace_id):
        run.note("The connection's account has changed, so workspace, guardrail and creator were not inherited.")
        return terms.model_copy(update={"workspace_id": None, "guardrail_id": None, "creator_user_id": None})
    return terms


async def _terms_of(run: Run, rotation: Rotation, current: Current, key: ApiKey) -> Terms:
    if key.limit_reset and not settable_reset(key) and rotation.key.limit_usd is None:
        run.note(
            f"The limit of the key {current.label} is reset {redacted(key.limit_reset)}, which cannot be set: the new "
            "key's limit is never reset. Name limit_reset on the rotation."
        )
    # While a budget is carried, the limit at OpenRouter is lower than the configured one.
    whole = current.terms if current.budget and current.terms else key
    guardrail_id = rotation.key.guardrail_id or await guardrail_of(run, current.connection, current.hash)
    return Terms.of(key, guardrail_id).model_copy(update={"limit": whole.limit})


def request_of(pending: Pending, name: str) -> KeyRequest:
    """Return the request to OpenRouter that a pending intent announces."""
    terms = pending.terms or Terms(workspace_id=pending.workspace_id)
    return terms.request(name, pending.budget.carried) if pending.budget else terms.request(name)
