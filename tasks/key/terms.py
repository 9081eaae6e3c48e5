"""The terms of the next key: the rotation's settings, inherited ones, and the rest of a carried budget."""

from __future__ import annotations

from datetime import datetime

from blocks.errors import ConfigurationError, NotFoundError, ServiceError
from blocks.openrouter.keys import ApiKey, KeyRequest
from blocks.redaction import redacted
from tasks.key.budget import carried_budget, is_spent, settle_budget
from tasks.model.keys import fingerprint, label_agrees
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
    terms = rotation.key.terms(now)
    if not (rotation.key.inherit or rotation.key.carry_budget):
        return terms, None
    current = await _source(run, rotation, now)
    if current is None:
        return terms, None
    former = await _former_key(run, current)
    if rotation.key.inherit:
        terms = terms.or_else(await _inherited(run, rotation, current, former))
    if former is None or not rotation.key.carry_budget:
        return terms, None
    return terms, carried_budget(former, current.budget, terms, now)


async def _source(run: Run, rotation: Rotation, now: datetime) -> Current | None:
    """Return the key to inherit from: the current one, unless keys were found again and consumers hold one of them."""
    current, found = run.ledger.current, [key for key in run.ledger.superseded if not key.fingerprint]
    if not found:
        return current
    await run.read_destinations_once(rotation.destinations)
    contents = [run.contents[name].value for name in rotation.destinations]
    if current and any(fingerprint(content) == current.fingerprint for content in contents):
        return current
    # Keys that were given up since count, too: they have inherited the settings.
    held = [key for key in run.ledger.superseded if any(label_agrees(key.label, content) for content in contents)]
    if held:
        return Current(**held[-1].model_dump(include=set(MadeKey.model_fields)), since=now, destinations=())
    if current is None and rotation.key.inherit:
        raise ConfigurationError(
            "rotation.key.inherit: the ledger was lost, and no destination holds one of the keys that were found "
            "again, so nobody knows what to inherit. Name the settings on the rotation, and switch inherit off. "
            "Nothing was created."
        )
    return current


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
    _refuse_a_part_of_a_limit(run, rotation, current, key)
    guardrail_id = rotation.key.guardrail_id or await guardrail_of(run, current.connection, current.hash)
    terms = Terms.of(key, guardrail_id)
    if current.budget is None or current.terms is None:
        return terms
    # While a budget is carried, the limit at OpenRouter is lower than the configured one; a cap has no reset either.
    reset = current.terms.limit_reset if is_spent(key) else terms.limit_reset
    return terms.model_copy(update={"limit": current.terms.limit, "limit_reset": reset})


def _refuse_a_part_of_a_limit(run: Run, rotation: Rotation, current: Current, key: ApiKey) -> None:
    """Refuse to inherit a limit that may be a cap, or what was left of a carried budget: consumers would get 402."""
    if key.limit is None or rotation.key.limit_usd is not None or not rotation.key.carry_budget:
        return
    terms = current.terms or Terms()
    recorded = current.budget is not None or (terms.limit, terms.limit_reset) == (key.limit, key.limit_reset)
    if current == run.ledger.current and (recorded or not is_spent(key)):
        return
    raise ConfigurationError(
        f"rotation.key.limit_usd: the ledger was lost or is out of date, and the limit of the key {current.label} may "
        "be only what was left of a carried budget. Set limit_usd and limit_reset on the rotation to the full limit. "
        "Nothing was created."
    )


def request_of(pending: Pending, name: str) -> KeyRequest:
    """Return the request to OpenRouter that a pending intent announces."""
    terms = pending.terms or Terms(workspace_id=pending.workspace_id)
    return terms.request(name, pending.budget.carried) if pending.budget else terms.request(name)
