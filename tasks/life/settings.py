"""Apply a rotation's settings to its current key."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from blocks.errors import ConfigurationError, NotFoundError
from blocks.openrouter.keys import ApiKey
from tasks.model.events import Event
from tasks.model.records import Budget, Current
from tasks.model.room import MAX_LEDGER_BYTES, largest_size
from tasks.model.rotation import Rotation
from tasks.model.terms import Terms
from tasks.world.account import guardrail_of
from tasks.world.ports import KeyChanger
from tasks.world.run import Run

ONLY_NEW_KEYS = {"workspace_id": "workspace", "creator_user_id": "creator"}
"""The settings that OpenRouter accepts only when a key is created."""


async def apply_settings(run: Run, rotation: Rotation) -> list[str]:
    """Apply the rotation's settings to the current key.

    Args:
        run: The run, whose ledger is loaded.
        rotation: The rotation as deployed.

    Returns:
        The names of the changed settings.

    Raises:
        ConfigurationError: There is no current key, or no room in the ledger for the new settings; nothing was changed.
        OtherRunError: Another run has taken over.
        ServiceError: OpenRouter failed; a Retry continues here.
    """
    current = run.ledger.current
    if current is None:
        raise ConfigurationError(f"rotation: {run.name} has no current key yet; start a rotation. Nothing was changed.")
    _check_room(run, rotation)
    openrouter = await run.world.connection(current.connection)
    try:
        found = await openrouter.get_key(current.hash)
        guardrail = await guardrail_of(run, current.connection, current.hash)
    except NotFoundError:
        raise ConfigurationError(
            f"rotation: the key {current.label} does not exist at OpenRouter any more; start a rotation. Nothing was "
            "changed."
        ) from None
    terms = _terms_now(run, rotation, current, found, guardrail)
    budget = current.budget if current.budget and terms.limit_reset == found.limit_reset else None
    changes = _changes(found, terms, budget)
    await run.guard()
    if changes:
        await openrouter.update_key(current.hash, **changes)
    if terms.guardrail_id != guardrail:
        await _change_guardrail(run, current, guardrail, terms.guardrail_id)
        changes["guardrail_id"] = terms.guardrail_id
    ledger = run.ledger.current_changed(terms=terms, budget=budget)
    await run.write(ledger.model_copy(update={"retirement": rotation.retirement}))
    await run.world.emit(Event.SETTINGS_APPLIED, run.name, **current.as_payload())
    return sorted(changes)


def _check_room(run: Run, rotation: Rotation) -> None:
    ledger = run.ledger.model_copy(update={"retirement": rotation.retirement})
    if largest_size(ledger) > MAX_LEDGER_BYTES:
        raise ConfigurationError(
            "rotation.retirement.retire_when: the ledger has no room to follow the use of its "
            f"{len(ledger.superseded)} superseded keys. Let some of them end first. Nothing was changed."
        )


def _terms_now(run: Run, rotation: Rotation, current: Current, found: ApiKey, guardrail: str | None) -> Terms:
    asked = rotation.key.terms(run.world.now())
    limit = current.terms.limit if current.budget and current.terms else found.limit
    actual = Terms.of(found, guardrail).model_copy(update={"limit": limit})
    wanted = asked.or_else(actual) if rotation.key.inherit else asked
    fixed: dict[str, Any] = {"expires_at": found.expires_at}
    for name, title in ONLY_NEW_KEYS.items():
        fixed[name] = getattr(actual, name)
        if getattr(wanted, name) not in (None, fixed[name]):
            run.note(f"The {title} of an existing key cannot be changed: the next rotation sets the new one.")
    return wanted.model_copy(update=fixed)


def _changes(found: ApiKey, terms: Terms, budget: Budget | None) -> dict[str, Any]:
    wanted = terms.request("-", budget.carried if budget else Decimal(0))
    names = ("limit", "limit_reset", "include_byok_in_limit")
    return {name: getattr(wanted, name) for name in names if getattr(found, name) != getattr(wanted, name)}


async def _change_guardrail(run: Run, current: Current, former: str | None, wanted: str | None) -> None:
    openrouter: KeyChanger = await run.world.connection(current.connection)
    try:
        if wanted is not None:
            # Assigning replaces the former guardrail, so the key is never without one.
            await openrouter.assign_guardrail(wanted, current.hash)
        elif former is not None:
            await openrouter.unassign_guardrail(former, current.hash)
    except NotFoundError:
        raise ConfigurationError(
            f"rotation.key.guardrail_id: the connection {current.connection} knows no such guardrail. The key "
            f"{current.label} keeps the one that it had."
        ) from None
