"""Rotate a key: create, verify and publish a new one before revoking the old one."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Annotated

from prefect import State

from flows.forms import form_field
from flows.runs import conclude, open_run, settings_now, show_plan
from flows.show.sentences import rotated, superseded_since
from tasks.key.lists import carry_over
from tasks.life.due import retire_older_keys, revoke_what_is_due
from tasks.life.plan import plan
from tasks.life.recover import observe, recover
from tasks.model.decisions import NOTHING_TO_PUBLISH, Situation
from tasks.model.events import Event
from tasks.model.records import Emergency
from tasks.model.rotation import Rotation, check_switch, parse_rotation
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run, VerifiedKey, gather_all
from tasks.world.secrecy import secret_flow


@secret_flow("rotate")
async def rotate(
    rotation: Annotated[Rotation, form_field("Rotation settings")],
    emergency: Annotated[bool, form_field("Emergency")] = False,
    plan_only: Annotated[bool, form_field("Plan only")] = False,
) -> State[None]:
    """Rotate an API key: create a new one, verify it, publish it to all destinations, then revoke the old one.

    It is safe to run at any time. Retry of a failed run finishes the same rotation.

    Args:
        rotation: The key to rotate: its connection, settings, destinations and overlap.
        emergency: Revoke every older key of this rotation immediately, without overlap.
        plan_only: Check everything and show what a run would do now, without changing anything.

    Returns:
        The final state; its message describes the result.
    """
    async with conclude() as conclusion:
        check_switch("emergency", emergency)
        check_switch("plan_only", plan_only)
        checked = await settings_now(parse_rotation(rotation))
        if plan_only:
            conclusion.succeeded(await show_plan(checked.name, partial(plan, rotation=checked), emergency=emergency))
            return conclusion.state
        async with open_run(checked.name, conclusion, emergency=emergency) as run:
            conclusion.succeeded(await follow_protocol(run, checked, AS_TASKS))
    return conclusion.state


async def follow_protocol(run: Run, rotation: Rotation, steps: Steps) -> str:
    """Rotate the key, whatever state the last run left, and return the final message.

    The ledger is a write-ahead log: `create_key` writes it before and after the key is created, `supersede` once every
    destination holds the key, `revoke_key` once the old key is deleted.

    Args:
        run: The run.
        rotation: The rotation.
        steps: The implementations of the steps: Prefect tasks, or plain functions in the simulation.

    Raises:
        KeyRotationError: A step failed. The ledger records all that was announced, so the next run can continue.
    """
    situation = await observe(run, rotation)
    run.leaves_other_tries = situation in NOTHING_TO_PUBLISH
    if situation is Situation.ROTATED_SINCE:
        before = run.ledger.superseded
        await retire_older_keys(run, steps)
        return superseded_since(run, before)

    run.step = "recover"
    half_published = await recover(run, rotation, situation, steps.revoke_key)
    if situation not in NOTHING_TO_PUBLISH:
        run.step = "create-key"
        key = half_published or await steps.create_key(run, rotation)
        run.step = "verify-key"
        verified = await steps.verify_key(run, rotation, key)
        run.step = "carry over"
        await carry_over(run, verified.record, inherit=rotation.key.inherit)
        run.step = "publish"
        await publish_everywhere(run, rotation, verified, steps)
        run.step = "write the ledger"
        await supersede(run, rotation)
    if situation is not Situation.TOO_YOUNG and (current := run.ledger.current):
        # Emitted again on a Retry: the process may have died between writing the ledger and emitting the event.
        await run.world.emit(Event.ROTATION_COMPLETED, run.name, **current.as_payload())

    run.step, superseded = "revoke-key", run.ledger.superseded
    await revoke_what_is_due(run, steps, rotation.destinations)
    return rotated(run, situation, superseded)


async def publish_everywhere(run: Run, rotation: Rotation, key: VerifiedKey, steps: Steps) -> None:
    """Publish to all destinations concurrently; one that fails does not stop the others.

    In a store without check-and-set, a write may take effect after its timeout, so the ledger records that first.
    """
    late_writes = await run.longest_late_writes(rotation.destinations)
    if late_writes and run.ledger.pending and run.ledger.pending.late_writes != late_writes:
        await run.record(run.ledger.publishing(late_writes))
    await gather_all([steps.publish(run, key, name) for name in rotation.destinations])


async def supersede(run: Run, rotation: Rotation) -> None:
    """Make the published key the current one; the former one stays superseded until its overlap ends."""
    now = run.world.now()
    overlap = timedelta(0) if run.identity.emergency else rotation.overlap
    published = run.ledger.published(
        run.identity.id,
        run.places_of(rotation.destinations),
        now,
        now + overlap,
        rotation.retirement,
        late_until=run.ledger.late_until(now) if run.has_late_writes else None,
        inherits=rotation.key.inherit,
    )
    await run.record(
        published.hastened(now, Emergency(run_id=run.identity.id, at=now)) if run.identity.emergency else published
    )
