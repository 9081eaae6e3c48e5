"""Begin and end a run: its identity, its slot, its ledger, and its final state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from socket import gethostname

from prefect import State
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.client.utilities import get_or_create_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from blocks.errors import ConfigurationError, KeyRotationError
from blocks.redaction import redact_logs
from flows.show.artifacts import show_markdown
from flows.show.rotation_page import artifact_key, as_markdown, plan_as_markdown, plan_key
from flows.show.sentences import failed
from flows.slot import Slot
from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.rotation import Rotation, is_slug
from tasks.model.tries import TRIES_AGAIN, Next, is_try
from tasks.world.api import api_errors
from tasks.world.deployments import rotation_of
from tasks.world.ledgers import VariableStore
from tasks.world.naming import name_run
from tasks.world.open_ledger import OpenLedger
from tasks.world.orchestrator import PrefectWorld, seconds_behind
from tasks.world.run import Run
from tasks.world.secrecy import unexpected
from tasks.world.tries import end_tries, has_completed, read_try, schedule_try

NEVER_TRIED_AGAIN = frozenset({"add-rotation", "remove-rotation"})
"""Flows that are never tried again later: by then, somebody may have ordered the opposite."""
MAX_SECONDS_EARLY = 60.0
"""The largest gap to its scheduled time that a run waits for; a worker fetches runs 10 seconds early."""


class Conclusion:
    """The outcome of a run: its final state and message."""

    def __init__(self) -> None:
        self.rotation = ""
        self.run: Run | None = None
        self.state: State[None] = Failed(message="The run ended without a result.")
        self.message = ""
        self.error: KeyRotationError | None = None
        self._ledger: Ledger | None = None
        self._behind = timedelta(seconds=seconds_behind(datetime.now(UTC)))

    def now(self) -> datetime:
        """Return the time, UTC, corrected if this host's clock is behind the server's, which schedules the tries."""
        return datetime.now(UTC) + self._behind

    def succeeded(self, message: str) -> None:
        """Record success, with the final message."""
        self.message = message
        self.state = Completed(message=message)

    async def failed(self, error: Exception) -> None:
        """Record a failure. Of an unexpected error only class and location are kept: its text may quote a secret."""
        self.error = error if isinstance(error, KeyRotationError) else unexpected(error)
        await self.reread_ledger()

    async def reread_ledger(self) -> None:
        """Reread the ledger, so that a failure names the key that is live now: another run may have rotated since."""
        if self.error is None:
            return
        ledger = None
        if self.run and self.run.has_looked:
            # If the ledger cannot be read now, this run's own copy is the best available.
            with suppress(KeyRotationError):
                await self.run.load()
            ledger = self.run.ledger
        self._ledger = ledger
        self.set_message(None)

    def set_message(self, following: Next | None) -> None:
        """Write the message of a failure, with the try that follows; the first failures do not alert anybody."""
        if self.error is not None:
            name = TRIES_AGAIN if following and not following.needs_person else None
            self.message = failed(self.error, self.run.step if self.run else "", self._ledger, following)
            self.state = Failed(message=self.message, name=name)


@asynccontextmanager
async def conclude() -> AsyncIterator[Conclusion]:
    """Turn any exception of the body into a final state with a message; the flow returns the conclusion's `state`.

    A retryable failure is tried again by a scheduled run of the same deployment, unless the flow is in
    `NEVER_TRIED_AGAIN`; a success deletes the scheduled tries.
    """
    redact_logs()
    conclusion = Conclusion()
    await _name_run()
    try:
        yield conclusion
    except Exception as error:  # noqa: BLE001 - every failure becomes a state with a message
        await conclusion.failed(error)
    # The release of the slot may have outlasted its lease, so another run may have rotated.
    await conclusion.reread_ledger()
    if conclusion.error is not None:
        await _follow_failure(conclusion, conclusion.error)
    elif conclusion.state.is_completed():
        await _follow_success(conclusion)


async def _name_run() -> None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    try:
        await name_run(context.flow_run, _flow_name())
    except (KeyRotationError, ObjectNotFound) as refusal:
        # A rotation must not fail because of its run's name.
        get_run_logger().warning("The run was not named: %s", refusal)


def _flow_name() -> str:
    context = FlowRunContext.get()
    return context.flow.name if context and context.flow else ""


async def _follow_failure(conclusion: Conclusion, error: KeyRotationError) -> None:
    flow = _flow_name()
    try:
        with api_errors("scheduling a try"):
            following = (
                None if flow in NEVER_TRIED_AGAIN else await schedule_try(_flow_run(), flow, error, conclusion.now())
            )
    except KeyRotationError as refusal:
        # Without a scheduled try, the failure alerts a person.
        get_run_logger().warning("No try was scheduled: %s", refusal)
        following = None
    if following is not None:
        conclusion.set_message(following)
    if conclusion.rotation:
        step = conclusion.run.step if conclusion.run else "begin"
        payload = {"step": step, "sentence": conclusion.message}
        await PrefectWorld().emit(Event.ROTATION_FAILED, conclusion.rotation, **payload)
        if conclusion.state.name != TRIES_AGAIN:
            await PrefectWorld().emit(Event.ROTATION_NEEDS_PERSON, conclusion.rotation, **payload)


async def _follow_success(conclusion: Conclusion) -> None:
    try:
        with api_errors("deleting tries"):
            only_own = conclusion.run is not None and conclusion.run.leaves_other_tries
            is_over = await end_tries(_flow_run(), conclusion.now(), only_own=only_own)
    except KeyRotationError as refusal:
        # A remaining try will find nothing to do.
        get_run_logger().warning("The tries of earlier failures were not deleted: %s", refusal)
        return
    if is_over and conclusion.rotation:
        await PrefectWorld().emit(Event.ROTATION_RECOVERED, conclusion.rotation, sentence=conclusion.message)


async def settings_now(given: Rotation) -> Rotation:
    """Return the settings for this run: a try uses its deployment's current settings.

    Raises:
        ServiceError: Prefect's API failed.
    """
    flow_run = _flow_run()
    if not is_try(flow_run.labels) or flow_run.deployment_id is None:
        return given
    client, _ = get_or_create_client()
    with suppress(ObjectNotFound), api_errors("reading the deployment"):
        deployed = rotation_of(await client.read_deployment(flow_run.deployment_id))
        if deployed is not None and deployed.name == given.name:
            return deployed
    return given


@asynccontextmanager
async def open_run(name: str, conclusion: Conclusion, *, emergency: bool = False) -> AsyncIterator[Run]:
    """Take the rotation's slot and open its ledger; at the end, write the rotation's artifact.

    Args:
        name: The rotation's name.
        conclusion: Receives the run and its outcome.
        emergency: Whether to revoke every older key immediately.

    Raises:
        ConfigurationError: The name is not valid.
        OtherRunError: Another run held the rotation's slot for too long.
    """
    if not is_slug(name):
        raise ConfigurationError("rotation: must be the name of a rotation. Nothing was changed.")
    conclusion.rotation = name
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(PrefectWorld())
        await world.sleep(seconds_early(_flow_run().expected_start_time, world.now()))
        slot = Slot(name, _flow_run(), emergency=emergency)
        await slot.take(stack)
        run = conclusion.run = await _this_run(name, emergency, world)
        for sentence in slot.notes:
            run.note(sentence)
        if world.seconds_behind > MAX_SECONDS_EARLY:
            run.warn(
                f"The clock of the host {gethostname()} is {world.seconds_behind:.0f} seconds behind that of Prefect's "
                "server: set the one that is wrong. Until then keys end late."
            )
        try:
            yield run
        except Exception as error:  # noqa: BLE001 - the artifact is written however the run ends
            await conclusion.failed(error)
        # If the ledger was never read, the page would falsely say that there is no key.
        if run.has_looked and not run.is_idle:
            page = as_markdown(run, conclusion.message)
            await show_markdown(artifact_key(name), page, f"State of rotation {name}")


Planned = Callable[[Run], Awaitable[tuple[list[str], list[str]]]]
"""Returns the checks that passed, and the steps that a run would take now, as sentences."""


async def show_plan(name: str, planned: Planned, *, emergency: bool = False) -> str:
    """Write an artifact with the steps that a run would take now, and return the final message.

    It writes nothing else, so it needs no slot.

    Args:
        name: The rotation's name.
        planned: Determines the steps.
        emergency: Whether the run would be an emergency.

    Raises:
        KeyRotationError: A run could not start; the message says why.
    """
    async with PrefectWorld() as world:
        run = await _this_run(name, emergency, world)
        checked, steps = await planned(run)
    with api_errors("showing the plan"):
        await acreate_markdown_artifact(
            key=plan_key(name),
            markdown=plan_as_markdown(run, checked, steps),
            description=f"Plan of the next run of rotation {name}",
        )
    return f"Plan only, nothing was changed: see the artifact {plan_key(name)}."


def seconds_early(scheduled: datetime | None, now: datetime) -> float:
    """Return how many seconds remain until a run's scheduled time: a worker may start a run early.

    A retirement that starts before its key is due would revoke nothing, and no later run is scheduled. A difference
    above `MAX_SECONDS_EARLY` means that the clocks disagree; the run does not wait for it.
    """
    early = (scheduled - now).total_seconds() if scheduled else 0.0
    return early if 0 < early <= MAX_SECONDS_EARLY else 0.0


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError("A rotation must run as a Prefect flow run.")
    return context.flow_run


async def _identify(emergency: bool, world: PrefectWorld) -> Identity:
    flow_run = _flow_run()
    origin = read_try(flow_run, world.now())
    # Like a Retry, a try is another attempt of the failed run.
    is_retry, finishes_another = flow_run.run_count > 1, origin.run_id != flow_run.id
    earlier = [flow_run.id] * is_retry + [origin.run_id] * finishes_another
    return Identity(
        id=origin.run_id,
        first_started=origin.since,
        attempt=max(flow_run.run_count, 1) + finishes_another,
        emergency=emergency,
        scheduled_for=origin.scheduled_for,
        completed=await has_completed(earlier),
    )


async def _this_run(name: str, emergency: bool, world: PrefectWorld) -> Run:
    identity = await _identify(emergency, world)
    return Run(name, identity, OpenLedger(name, VariableStore(name), identity.id), world)
