"""Remove a rotation permanently."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Literal, get_args

from prefect import State

from blocks.errors import ConfigurationError
from flows.forms import form_field
from flows.runs import conclude, open_run, show_plan
from flows.show.sentences import nothing_to_remove, removed
from tasks.life.due import revoke_what_is_due
from tasks.life.remove import (
    empty_destinations,
    end_keys,
    forget_when_nothing_is_left,
    plan_removal,
    refuse_what_came_back,
)
from tasks.model.events import Event
from tasks.model.rotation import MAX_OVERLAP, check_switch
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow

Keys = Literal["revoke", "keep", "keep-until"]
"""What happens to the current key of a removed rotation."""
Destinations = Literal["leave", "empty"]
"""What happens to the destinations of a removed rotation, which still hold its current key."""


@secret_flow("remove-rotation")
async def remove_rotation(
    rotation: Annotated[str, form_field("Rotation")],
    confirm_name: Annotated[str, form_field("Confirm the rotation's name")] = "",
    keys: Annotated[Keys, form_field("Current key")] = "revoke",
    keep_until: Annotated[datetime | None, form_field("Keep until")] = None,
    destinations: Annotated[Destinations, form_field("Destinations")] = "leave",
    plan_only: Annotated[bool, form_field("Plan only")] = False,
) -> State[None]:
    """Remove a rotation permanently: its deployment and schedule, its ledger, and its keys as chosen.

    Destinations that are left still hold the current key, which no longer works once it is revoked: move its consumers
    first.

    Args:
        rotation: Name of the rotation.
        confirm_name: The name again, to confirm: a removal cannot be undone. A plan needs none.
        keys: What happens to the current key. Older keys are revoked as planned, but never later than it.
        keep_until: For keep-until: when to revoke the current key, with a time zone.
        destinations: With revoke: leave the dead key where consumers read it, or empty the destinations.
        plan_only: Show what a removal would do now, without changing anything.

    Returns:
        The final state; its message describes the result.
    """
    async with conclude() as conclusion:
        check_switch("plan_only", plan_only)
        check_removal(str(rotation), str(rotation) if plan_only else confirm_name, keys, keep_until, destinations)
        until, revoke, empty = parse_keep_until(keep_until), keys == "revoke", destinations == "empty"
        if plan_only:
            planned = partial(_planned, until=until, revoke=revoke, empty=empty)
            conclusion.succeeded(await show_plan(str(rotation), planned))
            return conclusion.state
        async with open_run(str(rotation), conclusion) as run:
            conclusion.succeeded(await remove(run, end_of_keys(run, until, revoke=revoke), AS_TASKS, empty=empty))
    return conclusion.state


async def _planned(run: Run, *, until: datetime | None, revoke: bool, empty: bool) -> tuple[list[str], list[str]]:
    ledger = await run.load()
    if not run.has_ledger:
        raise ConfigurationError(f"rotation: {run.name} does not exist or has never run. Nothing was changed.")
    return [], plan_removal(ledger, run.name, end_of_keys(run, until, revoke=revoke), empty=empty)


def check_removal(
    rotation: str, confirm_name: object, keys: object, keep_until: object, destinations: object = "leave"
) -> None:
    """Validate the parameters before anything is changed.

    Raises:
        ConfigurationError: A parameter is invalid; the message names it.
    """
    if confirm_name != rotation:
        raise ConfigurationError(
            "confirm_name: does not match the name of the rotation; with plan_only the run shows what a removal does. "
            "Nothing was changed."
        )
    if keys not in get_args(Keys):
        raise ConfigurationError(f"keys: must be one of {', '.join(get_args(Keys))}. Nothing was changed.")
    if (keys == "keep-until") != (parse_keep_until(keep_until) is not None):
        raise ConfigurationError(
            "keep_until: set a date with a time zone if keys is keep-until, else leave it empty. Nothing was changed."
        )
    if destinations not in get_args(Destinations):
        raise ConfigurationError(
            f"destinations: must be one of {', '.join(get_args(Destinations))}. Nothing was changed."
        )
    if destinations == "empty" and keys != "revoke":
        raise ConfigurationError(
            "destinations: they can be emptied only if keys is revoke, because consumers still read a kept key there. "
            "Nothing was changed."
        )


def end_of_keys(run: Run, keep_until: datetime | None, *, revoke: bool) -> datetime | None:
    """Return when to revoke every key of the rotation, UTC; `None` if the current key is kept permanently.

    The date is compared with the first start of the run, because a Retry may legitimately run after that date.

    Raises:
        ConfigurationError: The date had passed when the run was started, or is too far ahead.
    """
    if revoke:
        return run.world.now()
    if keep_until is not None and keep_until <= run.identity.first_started:
        raise ConfigurationError("keep_until: must be in the future. Nothing was changed.")
    if keep_until is not None and keep_until - run.identity.first_started > MAX_OVERLAP:
        raise ConfigurationError(
            f"keep_until: must not be more than {MAX_OVERLAP.days} days ahead; to keep the key permanently, choose "
            "keep. Nothing was changed."
        )
    return keep_until


def parse_keep_until(value: object) -> datetime | None:
    """Return a date and time, or its ISO 8601 text as deployments store it, in UTC.

    `None` stands for an empty value, a time without a zone, or one outside of the range of UTC.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    try:
        return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo else None
    except OverflowError:
        return None


async def remove(run: Run, revoke_at: datetime | None, steps: Steps, *, empty: bool = False) -> str:
    """Remove a rotation, whatever state the last run left, and return the final message.

    Args:
        run: The run.
        revoke_at: When to revoke every key, UTC; `None` to keep the current one permanently.
        steps: The implementations of the steps.
        empty: Whether to empty the destinations before the current key is revoked.

    Raises:
        KeyRotationError: The removal is incomplete. Retry continues.
    """
    ledger = await run.load()
    if run.identity.completed:
        return nothing_to_remove(run)
    refuse_what_came_back(run)
    if ledger.current:
        run.connection, run.destinations = ledger.current.connection, ledger.current.destinations
    if revoke_at is None and ledger.pending is not None and ledger.pending.key is not None:
        raise ConfigurationError(
            f"keys: the last rotation of {run.name} is unfinished, so it is unclear which key to keep. Retry that "
            "rotation first. Nothing was changed."
        )
    run.step = "delete the deployment"
    had_deployment = await run.world.delete_deployment(run.name)
    if not run.has_ledger:
        if ledger.is_closed:
            # The run that closed the ledger may have died before it emitted this event.
            await run.world.emit(Event.ROTATION_REMOVED, run.name)
        return removed(run, None, had_deployment=had_deployment)
    emptied = {}
    if empty:
        run.step = "empty the destinations"
        emptied = await empty_destinations(run)
    run.step = "give up the keys"
    await end_keys(run, revoke_at, emptied)
    before = run.ledger.superseded
    await run.world.cancel_retirements(run.name, run.ledger.due_times())
    run.step = "revoke-key"
    await revoke_what_is_due(run, steps)
    message = removed(run, before, had_deployment=had_deployment, emptied=list(emptied))
    await forget_when_nothing_is_left(run)
    return message
