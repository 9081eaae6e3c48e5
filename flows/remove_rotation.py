"""Take a rotation away for good."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, get_args

from prefect import State

from blocks.errors import ConfigurationError
from flows.runs import conclude, open_run
from flows.show.sentences import removed
from tasks.life.due import revoke_what_is_due
from tasks.life.remove import forget_when_nothing_is_left, give_up_keys
from tasks.model.events import Event
from tasks.model.rotation import MAX_OVERLAP
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow

Keys = Literal["revoke", "keep", "keep-until"]
"""What becomes of a removed rotation's current key."""


@secret_flow("remove-rotation")
async def remove_rotation(
    rotation: str, confirm_name: str, keys: Keys = "revoke", keep_until: datetime | None = None
) -> State[None]:
    """Take a rotation away for good: its deployment with the schedule, its ledger, and its keys as chosen.

    Args:
        rotation: The name of the rotation.
        confirm_name: The name once more, typed by hand, because a removal cannot be undone.
        keys: What becomes of its current key; older keys end as planned, and never later than that.
        keep_until: For keep-until: when the current key is revoked, with its time zone.

    Returns:
        The final state, whose message says in one sentence what happened.
    """
    async with conclude() as conclusion:
        checked = check_removal(str(rotation), confirm_name, keys, keep_until)
        async with open_run(checked, False, conclusion) as run:
            revoke_at = end_of_keys(run, parse_keep_until(keep_until), revoke=keys == "revoke")
            conclusion.succeeded(await remove(run, revoke_at, AS_TASKS))
    return conclusion.state


def check_removal(rotation: str, confirm_name: object, keys: object, keep_until: object) -> str:
    """Refuse a removal that is not meant so, before anything is changed.

    Args:
        rotation: The name of the rotation.
        confirm_name: What was typed to confirm it.
        keys: What is to become of the current key.
        keep_until: Until when it is kept.

    Returns:
        The name of the rotation.

    Raises:
        ConfigurationError: One sentence that names the field.
    """
    if confirm_name != rotation:
        raise ConfigurationError("confirm_name: it is not the name of the rotation. Nothing was changed.")
    if keys not in get_args(Keys):
        raise ConfigurationError(f"keys: it must be one of {', '.join(get_args(Keys))}. Nothing was changed.")
    if (keys == "keep-until") != (parse_keep_until(keep_until) is not None):
        raise ConfigurationError(
            "keep_until: a date with a time zone is needed for keep-until, and only there. Nothing was changed."
        )
    return rotation


def end_of_keys(run: Run, keep_until: datetime | None, *, revoke: bool) -> datetime | None:
    """Say when no key of the rotation may be alive any more.

    Args:
        run: The run. A Retry may well come after the date; only a first attempt can have meant another one.
        keep_until: Until when the current key is kept, UTC.
        revoke: Whether it is not kept at all.

    Returns:
        The moment, UTC; `None` where the current key is kept for good.

    Raises:
        ConfigurationError: The date had passed when the run was started, or lies too far ahead.
    """
    if revoke:
        return run.world.now()
    if keep_until is not None and keep_until <= run.identity.first_started:
        raise ConfigurationError("keep_until: it is past already. Nothing was changed.")
    if keep_until is not None and keep_until - run.identity.first_started > MAX_OVERLAP:
        raise ConfigurationError(
            f"keep_until: it is more than {MAX_OVERLAP.days} days ahead; to keep the key for good, choose keep. "
            "Nothing was changed."
        )
    return keep_until


def parse_keep_until(value: object) -> datetime | None:
    """Read a moment from a parameter, which is text where a deployment stores it.

    Args:
        value: A date and time, or its ISO 8601 text.

    Returns:
        The moment, UTC; `None` for nothing, for a time without a zone, and for one that UTC cannot tell.
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


async def remove(run: Run, revoke_at: datetime | None, steps: Steps) -> str:
    """Take a rotation away, from whatever state the last run left.

    Args:
        run: The run.
        revoke_at: When no key may be alive any more, UTC; `None` to keep the current one for good.
        steps: How each step is done.

    Returns:
        What happened, in one sentence.

    Raises:
        KeyRotationError: It is not done; a Retry goes on.
    """
    ledger = await run.load()
    run.connection = ledger.current.connection if ledger.current else ""
    if revoke_at is None and ledger.pending is not None and ledger.pending.key is not None:
        raise ConfigurationError(
            f"keys: the last rotation of {run.name} has not ended, so it is not clear which key is to be kept. Retry "
            "that rotation first. Nothing was changed."
        )
    run.step = "delete the deployment"
    had_deployment = await run.world.delete_deployment(run.name)
    if not run.has_ledger:
        if ledger.is_closed:
            # The run that closed the ledger may have died before it told anybody.
            await run.world.emit(Event.ROTATION_REMOVED, run.name)
        return removed(run, had_deployment=had_deployment, gone=True)
    run.step = "give up the keys"
    await give_up_keys(run, revoke_at)
    await run.world.cancel_retirements(run.name, run.ledger.due_times())
    run.step = "revoke-key"
    await revoke_what_is_due(run, list(ledger.current.destinations) if ledger.current else [], steps)
    message = removed(run, had_deployment=had_deployment, gone=False)
    await forget_when_nothing_is_left(run)
    return message
