"""Write off a key that nobody can revoke any more."""

from __future__ import annotations

from typing import Annotated

from prefect import State

from blocks.errors import ConfigurationError
from blocks.foreign import harmless
from blocks.redaction import redacted
from flows.forms import form_field
from flows.runs import conclude, open_run
from flows.show.sentences import wrote_off
from tasks.life.remove import forget_when_nothing_is_left
from tasks.life.write_off import write_key_off
from tasks.model.written_off import MAX_REASON
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow


@secret_flow("write-off-key")
async def write_off_key(
    rotation: Annotated[str, form_field("Rotation")],
    label: Annotated[str, form_field("Key label")],
    reason: Annotated[str, form_field("Reason")],
    confirm_name: Annotated[str, form_field("Confirm the rotation's name")],
) -> State[None]:
    """Remove from a rotation's ledger a key that can no longer be revoked, because its account is out of reach.

    The key may stay alive at OpenRouter. If it can still be revoked, the run fails and changes nothing.

    Args:
        rotation: The name of the rotation.
        label: The key's label, such as sk-or-v1-0e6...1c96; if it is unknown whether a run made one, that run's id.
        reason: Why it is written off; the ledger, the event and the artifact show it.
        confirm_name: The rotation's name once more, typed by hand, because a key that is written off is not revoked.

    Returns:
        The final state, whose message says in one sentence what happened.
    """
    async with conclude() as conclusion:
        why = check_write_off(str(rotation), confirm_name, reason)
        async with open_run(str(rotation), conclusion) as run:
            conclusion.succeeded(await follow_write_off(run, str(label), why))
    return conclusion.state


def check_write_off(rotation: str, confirm_name: object, reason: object) -> str:
    """Validate the confirmation and the reason, before anything is changed.

    Args:
        rotation: The name of the rotation.
        confirm_name: The name as typed to confirm.
        reason: Why the key is written off.

    Returns:
        The reason without markup, on one line, cut to `MAX_REASON` characters.

    Raises:
        ConfigurationError: A field is invalid; the message names it.
    """
    if confirm_name != rotation:
        raise ConfigurationError("confirm_name: it is not the name of the rotation. Nothing was changed.")
    if not isinstance(reason, str) or not harmless(reason, MAX_REASON):
        raise ConfigurationError("reason: say why the key is written off. Nothing was changed.")
    if redacted(reason) != reason:
        raise ConfigurationError("reason: it holds what looks like a secret. Nothing was changed.")
    return harmless(reason, MAX_REASON)


async def follow_write_off(run: Run, label: str, reason: str) -> str:
    """Write a key off, whatever state the last run left, and return the final message.

    Args:
        run: The run.
        label: The key's label.
        reason: Why it is written off.

    Raises:
        KeyRotationError: The key was not written off.
    """
    await run.load()
    if not run.has_ledger:
        raise ConfigurationError(f"rotation: {run.name} does not exist or has never run. Nothing was changed.")
    run.step = "write the key off"
    entry = await write_key_off(run, label.strip(), reason)
    message = wrote_off(run, entry)
    await forget_when_nothing_is_left(run)
    return message
