"""How a run begins and ends: its identity, its slot, its ledger, and a final state that a person can act on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

from prefect import State
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.client.utilities import get_or_create_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from blocks.errors import ConfigurationError, KeyRotationError, ServiceError
from blocks.redaction import redact_logs
from flows.show.artifacts import show_markdown
from flows.show.overview import refresh_overview
from flows.show.rotation_page import artifact_key, as_markdown, plan_as_markdown
from flows.show.sentences import failed
from flows.slot import take_slot
from tasks.life.plan import plan
from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.rotation import Rotation, is_slug
from tasks.world.api import api_errors
from tasks.world.ledgers import VariableStore
from tasks.world.open_ledger import OpenLedger
from tasks.world.orchestrator import PrefectWorld
from tasks.world.run import Run
from tasks.world.secrecy import unexpected

MAX_SECONDS_EARLY = 60.0
"""How far ahead of its time a run may be and still wait for it; a worker fetches runs 10 seconds ahead."""


class Conclusion:
    """How a run ended."""

    def __init__(self) -> None:
        self.rotation = ""
        self.run: Run | None = None
        self.state: State[None] = Failed(message="The run ended without a result.")
        self.message = ""

    def succeeded(self, message: str) -> None:
        """Record that the run reached its end.

        Args:
            message: What happened, in one sentence.
        """
        self.message = message
        self.state = Completed(message=message)

    def failed(self, error: Exception) -> None:
        """Record that a step failed.

        Args:
            error: What failed; of an error that is not ours only its class and its place are told.
        """
        if not isinstance(error, KeyRotationError):
            error = unexpected(error)
        ledger = self.run.ledger if self.run and self.run.has_looked else None
        self.message = failed(error, self.run.step if self.run else "", ledger)
        self.state = Failed(message=self.message)


@asynccontextmanager
async def conclude() -> AsyncIterator[Conclusion]:
    """Turn whatever ends the block inside into a final state with a plain message.

    Yields:
        The conclusion, whose `state` the flow returns.
    """
    redact_logs()
    conclusion = Conclusion()
    try:
        yield conclusion
    except Exception as error:  # noqa: BLE001 - whatever ends a run, its state says so plainly
        conclusion.failed(error)
    if conclusion.rotation and conclusion.state.is_failed():
        step = conclusion.run.step if conclusion.run else "begin"
        await PrefectWorld().emit(Event.ROTATION_FAILED, conclusion.rotation, step=step, sentence=conclusion.message)


@asynccontextmanager
async def open_run(name: str, emergency: bool, conclusion: Conclusion) -> AsyncIterator[Run]:
    """Take the rotation's slot and open its ledger; at the end, show the rotation's state as an artifact.

    Args:
        name: The rotation's name.
        emergency: Whether every older key is to die at once.
        conclusion: Learns about the run, and how it ended.

    Yields:
        The run.

    Raises:
        ConfigurationError: The name cannot be a rotation's.
        PlaceLostError: Another run of the rotation holds the slot for too long.
    """
    if not is_slug(name):
        raise ConfigurationError("rotation: it must be the name of a rotation. Nothing was changed.")
    conclusion.rotation = name
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(PrefectWorld())
        await world.sleep(seconds_early(_flow_run().expected_start_time, world.now()))
        await take_slot(stack, name, emergency=emergency)
        identity = await _identify(emergency, world)
        run = Run(name, identity, OpenLedger(name, VariableStore(name), identity.id), world)
        conclusion.run = run
        try:
            yield run
        except Exception as error:  # noqa: BLE001 - whatever ends a run, its artifact shows where it stands
            conclusion.failed(error)
        await _prune(run)
        page = as_markdown(run, conclusion.message)
        await show_markdown(artifact_key(name), page, f"The state of rotation {name}")
        await refresh_overview(name, str(identity.id), conclusion.state, world.now())


async def _prune(run: Run) -> None:
    # The next run prunes what is left.
    try:
        await run.prune()
    except ServiceError as error:
        get_run_logger().warning("The older terms of the ledger were not deleted: %s", error)


async def show_plan(rotation: Rotation, emergency: bool) -> str:
    """Show as an artifact what a run would do now; nothing is written but that, so no slot is needed.

    Args:
        rotation: The rotation.
        emergency: Whether every older key would have to die at once.

    Returns:
        One sentence.

    Raises:
        KeyRotationError: A run could not even begin; the message says why.
    """
    async with PrefectWorld() as world:
        identity = await _identify(emergency, world)
        run = Run(
            rotation.name,
            identity,
            OpenLedger(rotation.name, VariableStore(rotation.name), identity.id),
            world,
        )
        checked, steps = await plan(run, rotation)
    artifact = f"{artifact_key(rotation.name)}-plan"
    with api_errors("showing the plan"):
        await acreate_markdown_artifact(
            key=artifact,
            markdown=plan_as_markdown(run, checked, steps),
            description=f"What a run of rotation {rotation.name} would do now",
        )
    return f"Nothing was changed; the artifact {artifact} shows what a run would do now."


def seconds_early(scheduled: datetime | None, now: datetime) -> float:
    """Say how long to wait for a run's scheduled time, because a worker fetches runs early and may start them so.

    Without the wait a retirement could find that nothing is due yet, and no other run of it is scheduled.

    Args:
        scheduled: When the run was to start.
        now: The current moment, UTC.

    Returns:
        The seconds to wait: none for a run that is on time or late, nor where the clocks disagree about more than what
        a worker fetches ahead.
    """
    early = (scheduled - now).total_seconds() if scheduled else 0.0
    return early if 0 < early <= MAX_SECONDS_EARLY else 0.0


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError("A rotation runs as a Prefect flow run only.")
    return context.flow_run


async def _has_completed(flow_run: FlowRun) -> bool:
    if flow_run.run_count <= 1:
        return False
    with api_errors("reading the states of this run"):
        client, _ = get_or_create_client()
        return any(state.is_completed() for state in await client.read_flow_run_states(flow_run.id))


async def _identify(emergency: bool, world: PrefectWorld) -> Identity:
    flow_run = _flow_run()
    started = flow_run.start_time
    return Identity(
        id=flow_run.id,
        first_started=started.astimezone(UTC) if started else world.now(),
        attempt=max(flow_run.run_count, 1),
        emergency=emergency,
        # A Retry is a person's.
        scheduled_for=flow_run.expected_start_time if flow_run.auto_scheduled and flow_run.run_count <= 1 else None,
        completed=await _has_completed(flow_run),
    )
