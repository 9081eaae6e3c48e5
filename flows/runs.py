"""Start and end of a run: its identity, its slot, its ledger, and its final state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime

from prefect import State
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.client.utilities import get_or_create_client
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from blocks.errors import ConfigurationError, KeyRotationError
from blocks.redaction import redact_logs
from flows.show.artifacts import show_markdown
from flows.show.rotation_page import artifact_key, as_markdown, plan_as_markdown
from flows.show.sentences import failed
from flows.slot import Slot
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
"""How much early a run may start and still wait for its scheduled time; a worker fetches runs 10 seconds early."""


class Conclusion:
    """The outcome of a run: its final state and message."""

    def __init__(self) -> None:
        self.rotation = ""
        self.run: Run | None = None
        self.state: State[None] = Failed(message="The run ended without a result.")
        self.message = ""
        self._error: KeyRotationError | None = None

    def succeeded(self, message: str) -> None:
        """Record success, with the final message."""
        self.message = message
        self.state = Completed(message=message)

    async def failed(self, error: Exception) -> None:
        """Record a failure. Only the class and location of a foreign error are kept: its text may quote a secret."""
        self._error = error if isinstance(error, KeyRotationError) else unexpected(error)
        await self.look_again()

    async def look_again(self) -> None:
        """Name in the message of a failure the key that is live now: another run may have rotated since."""
        if self._error is None:
            return
        ledger = None
        if self.run and self.run.has_looked:
            # Where the ledger cannot be read, what this run knows of it is the latest that can be told.
            with suppress(KeyRotationError):
                await self.run.load()
            ledger = self.run.ledger
        self.message = failed(self._error, self.run.step if self.run else "", ledger)
        self.state = Failed(message=self.message)


@asynccontextmanager
async def conclude() -> AsyncIterator[Conclusion]:
    """Turn any exception of the body into a final state with a message; the flow returns the conclusion's `state`."""
    redact_logs()
    conclusion = Conclusion()
    try:
        yield conclusion
    except Exception as error:  # noqa: BLE001 - every failure becomes a state with a message
        await conclusion.failed(error)
    # Giving the slot back may have taken longer than the slot's lease.
    await conclusion.look_again()
    if conclusion.rotation and conclusion.state.is_failed():
        step = conclusion.run.step if conclusion.run else "begin"
        await PrefectWorld().emit(Event.ROTATION_FAILED, conclusion.rotation, step=step, sentence=conclusion.message)


@asynccontextmanager
async def open_run(name: str, emergency: bool, conclusion: Conclusion) -> AsyncIterator[Run]:
    """Take the rotation's slot and open its ledger; at the end, write the rotation's artifact.

    Args:
        name: The rotation's name.
        emergency: Whether to revoke every older key immediately.
        conclusion: Receives the run and its outcome.

    Yields:
        The run.

    Raises:
        ConfigurationError: The name is not valid.
        PlaceLostError: Another run held the rotation's slot for too long.
    """
    if not is_slug(name):
        raise ConfigurationError("rotation: must be the name of a rotation. Nothing was changed.")
    conclusion.rotation = name
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(PrefectWorld())
        await world.sleep(seconds_early(_flow_run().expected_start_time, world.now()))
        slot = Slot(name, _flow_run().id)
        await slot.take(stack, emergency=emergency)
        run = conclusion.run = await _this_run(name, emergency, world)
        for sentence in slot.notes:
            run.note(sentence)
        try:
            yield run
        except Exception as error:  # noqa: BLE001 - the artifact is written however the run ends
            await conclusion.failed(error)
        # Without a look at the ledger the page would say that there is no key.
        if run.has_looked and not run.is_idle:
            page = as_markdown(run, conclusion.message)
            await show_markdown(artifact_key(name), page, f"State of rotation {name}")


async def show_plan(rotation: Rotation, emergency: bool) -> str:
    """Write an artifact with the steps that a run would take now, and return the final message.

    Nothing else is written, so no slot is needed.

    Raises:
        KeyRotationError: A run could not start; the message says why.
    """
    async with PrefectWorld() as world:
        run = await _this_run(rotation.name, emergency, world)
        checked, steps = await plan(run, rotation)
    artifact = f"{artifact_key(rotation.name)}-plan"
    with api_errors("showing the plan"):
        await acreate_markdown_artifact(
            key=artifact,
            markdown=plan_as_markdown(run, checked, steps),
            description=f"Plan of the next run of rotation {rotation.name}",
        )
    return f"Plan only, nothing was changed: see the artifact {artifact}."


def seconds_early(scheduled: datetime | None, now: datetime) -> float:
    """Return how many seconds to wait for a run's scheduled time: workers fetch runs early, and may start them early.

    Without the wait, a retirement could start before its key is due, and no later run of it is scheduled. A difference
    above `MAX_SECONDS_EARLY` means that the clocks disagree, and is not waited for.
    """
    early = (scheduled - now).total_seconds() if scheduled else 0.0
    return early if 0 < early <= MAX_SECONDS_EARLY else 0.0


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError("A rotation must run as a Prefect flow run.")
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
        # A Retry is manual.
        scheduled_for=flow_run.expected_start_time if flow_run.auto_scheduled and flow_run.run_count <= 1 else None,
        completed=await _has_completed(flow_run),
    )


async def _this_run(name: str, emergency: bool, world: PrefectWorld) -> Run:
    identity = await _identify(emergency, world)
    return Run(name, identity, OpenLedger(name, VariableStore(name), identity.id), world)
