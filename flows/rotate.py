"""The rotation: a new key, proven and published, before the old one dies."""

from __future__ import annotations

from datetime import timedelta

from prefect import State

from flows.runs import conclude, open_run, show_plan
from flows.show.sentences import rotated, superseded_since
from tasks.life.due import revoke_what_is_due
from tasks.life.recover import observe, recover
from tasks.model.decisions import Situation
from tasks.model.events import Event
from tasks.model.ledger import Emergency
from tasks.model.rotation import Rotation, check_switch, parse_rotation
from tasks.steps import AS_TASKS, Steps
from tasks.world.run import Run, VerifiedKey, gather_all
from tasks.world.secrecy import secret_flow


@secret_flow("rotate")
async def rotate(rotation: Rotation, emergency: bool = False, plan_only: bool = False) -> State[None]:
    """Rotate an API key: create a new one, verify it, publish it everywhere, then revoke the old one.

    A run may be started at any time and as often as one likes. A Retry of a failed run finishes the same rotation.

    Args:
        rotation: The key that is kept fresh: its connection, settings, destinations and overlap.
        emergency: Revoke every older key of this rotation at once, without overlap.
        plan_only: Change nothing anywhere; check everything and show what a run would do now.

    Returns:
        The final state, whose message says in one sentence what happened.
    """
    async with conclude() as conclusion:
        check_switch("emergency", emergency)
        check_switch("plan_only", plan_only)
        checked = parse_rotation(rotation)
        if plan_only:
            conclusion.succeeded(await show_plan(checked, emergency))
            return conclusion.state
        async with open_run(checked.name, emergency, conclusion) as run:
            conclusion.succeeded(await follow_protocol(run, checked, AS_TASKS))
    return conclusion.state


async def follow_protocol(run: Run, rotation: Rotation, steps: Steps) -> str:
    """Follow the protocol of a rotation from whatever state the last run left.

    The ledger is written before each step that it announces: by `create_key` before and after the key is made, by
    `supersede` once every destination holds it, by `revoke_key` once the old key is dead.

    Args:
        run: The run.
        rotation: The rotation.
        steps: How each step is done: as Prefect tasks, or plainly in a simulation.

    Returns:
        What happened, in one sentence.

    Raises:
        KeyRotationError: A step failed. What it announced is in the ledger, so that the next run can go on.
    """
    situation = await observe(run, rotation)
    if situation is Situation.ROTATED_SINCE:
        return superseded_since(run)

    run.step = "recover"
    half_published = await recover(run, rotation, situation, steps.revoke_key)
    if situation not in (Situation.ALREADY_ROTATED, Situation.TOO_YOUNG):
        run.step = "create-key"
        key = half_published or await steps.create_key(run, rotation)
        run.step = "verify-key"
        verified = await steps.verify_key(run, rotation, key)
        run.step = "publish"
        await publish_everywhere(run, rotation, verified, steps)
        run.step = "write the ledger"
        await supersede(run, rotation)
    if situation is not Situation.TOO_YOUNG and (current := run.ledger.current):
        # A Retry tells it again: the process that wrote the ledger may have died before it told anybody.
        await run.world.emit(Event.ROTATION_COMPLETED, run.name, **current.told())

    run.step = "revoke-key"
    await revoke_what_is_due(run, rotation.destinations, steps)
    return rotated(run, situation)


async def publish_everywhere(run: Run, rotation: Rotation, key: VerifiedKey, steps: Steps) -> None:
    """Publish to all destinations side by side; each one that works gets the key even if another fails.

    Where a store does not compare before it sets, a write may take effect after it was given up: the ledger says so
    before.
    """
    late_writes = max([(await run.world.destination(name)).late_writes for name in rotation.destinations])
    if late_writes and run.ledger.pending and run.ledger.pending.late_writes != late_writes:
        await run.write(run.ledger.publishing(late_writes))
    await gather_all([steps.publish(run, key, name) for name in rotation.destinations])


async def supersede(run: Run, rotation: Rotation) -> None:
    """Make the published key the current one; the former one is superseded until its overlap ends."""
    now = run.world.now()
    overlap = timedelta(0) if run.identity.emergency else rotation.overlap
    destinations = tuple(rotation.destinations)
    published = run.ledger.published(
        run.identity.id,
        destinations,
        now,
        now + overlap,
        rotation.retirement,
        late_until=run.ledger.late_until(now) if run.has_late_writes else None,
    )
    await run.write(
        published.hastened(now, Emergency(run_id=run.identity.id, at=now)) if run.identity.emergency else published
    )
