"""The ports as Prefect implements them: its API, the stored blocks, the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.utilities import get_or_create_client
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as flow_run_context
from prefect.states import Cancelled, Scheduled

from blocks.destination import Destination
from blocks.errors import ConfigurationError
from blocks.openrouter.client import OpenRouterClient
from tasks.model.events import Event, resource
from tasks.model.rotation import Rotation, parse_rotation
from tasks.world.api import LEDGER_TAG, PAGE_SIZE, api_errors, pages, parse_time
from tasks.world.connections import CONNECTION_TYPE, open_connection
from tasks.world.deployments import all_deployments, longest_interval_of, rotation_of
from tasks.world.destinations import PrefectSecret, open_destination
from tasks.world.installation import read_or_make_installation
from tasks.world.inventory import destinations_in_use
from tasks.world.ledgers import all_ledgers
from tasks.world.ports import Deployed
from tasks.world.stored_blocks import load_blocks

RETIRE_DEPLOYMENT = "retire/retire"
SURELY_LATER = timedelta(minutes=1)
"""How much later than by the difference of two clocks a run starts that had to wait for the one that is behind."""


def seconds_behind(now: datetime) -> float:
    """Return by how much a clock is behind that of Prefect's server, as far as the start of this flow run shows.

    Args:
        now: The time by that clock, UTC.
    """
    context = FlowRunContext.get()
    state = context.flow_run.state if context and context.flow_run else None
    # The server writes the time of each state; what it wrote is past for it.
    return max((state.timestamp - now).total_seconds(), 0.0) if state else 0.0


def _is_to_come(flow_run: FlowRun) -> bool:
    # A run whose worker's clock is behind finds that it is early, and is not the one that comes later.
    own = flow_run_context.get_id() == str(flow_run.id)
    return flow_run.state is None or not (flow_run.state.is_final() or own)


class PrefectWorld:
    """The way to everything outside of the process; use it in `async with`, so that connections are closed."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._connections: dict[str, OpenRouterClient] = {}
        self._destinations: dict[str, Destination] = {}
        self._logins: dict[UUID, Block] = {}
        self._blocks: dict[str, Block] = {}
        self._retire_deployment: UUID | None = None
        self.seconds_behind = seconds_behind(self.now())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def apart(self) -> PrefectWorld:
        """Open another world, which closes what was opened in it at the end of the block."""
        return PrefectWorld()

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def load_blocks(self, destinations: Collection[str], connection: str = "") -> None:
        """Read several blocks with one request: those that are not open yet, and Prefect's secrets as they are now.

        Each one is opened where it is used, which reads a single block, and tells what is wrong with one.

        Args:
            destinations: Type slug and name of each destination's block.
            connection: The name of the `openrouter-credentials` block, if that is wanted too.

        Raises:
            ServiceError: Prefect's API failed.
        """
        secrets = {
            name: place
            for name, place in self._destinations.items()
            if isinstance(place, PrefectSecret) and place.is_read
        }
        wanted = [name for name in destinations if name in secrets or name not in {*self._destinations, *self._blocks}]
        if connection and connection not in self._connections:
            wanted.append(f"{CONNECTION_TYPE}/{connection}")
        if len(wanted) == 1:
            return
        for name, block in (await load_blocks(wanted)).items() if wanted else ():
            if name in secrets and isinstance(block, Secret):
                secrets[name].loaded_again(block)
            else:
                self._blocks[name] = block

    async def connection(self, name: str) -> OpenRouterClient:
        """Open the connection of an `openrouter-credentials` block, once per run.

        Args:
            name: The block's name.

        Raises:
            ConfigurationError: There is no such block, or it is not valid.
        """
        if name not in self._connections:
            self._connections[name] = await self._open.enter_async_context(
                await open_connection(name, loaded=self._blocks)
            )
        return self._connections[name]

    async def destination(self, name: str) -> Destination:
        """Open a destination, once per run; those with the same credentials block share its login.

        Args:
            name: The block's type slug and name.

        Raises:
            ConfigurationError: There is no such block, or it is no secret.
        """
        if name not in self._destinations:
            destination = await open_destination(name, logins=self._logins, loaded=self._blocks)
            self._open.push_async_callback(destination.aclose)
            self._destinations[name] = destination
        return self._destinations[name]

    async def emit(self, event: Event, rotation: str, **payload: str) -> None:
        """Emit an event; it is queued, so that a server that is away neither delays nor fails the run.

        Args:
            event: What happened.
            rotation: The rotation's name.
            **payload: What else is to be known; never a secret.
        """
        emit_event(event.value, resource(rotation), payload={"rotation": rotation, **payload})

    async def check_deployment(self) -> None:
        """Refuse a run whose deployment was deleted while it waited: it would bring a removed rotation back.

        Raises:
            ConfigurationError: This run's deployment does not exist any more.
            ServiceError: Prefect's API failed.
        """
        try:
            await self._own_deployment()
        except ObjectNotFound:
            raise ConfigurationError(
                "rotation: it was removed while this run waited for its turn. Nothing was created."
            ) from None

    async def _own_deployment(self) -> DeploymentResponse | None:
        context = FlowRunContext.get()
        deployment_id = context.flow_run.deployment_id if context and context.flow_run else None
        if deployment_id is None:
            return None
        client, _ = get_or_create_client()
        with api_errors("reading the deployment"):
            return await client.read_deployment(deployment_id)

    async def installation(self) -> str:
        """Read the id of this Prefect installation; it is made at the first use.

        Raises:
            ConfigurationError: Somebody has changed it to what is no such id.
            ServiceError: Prefect's API failed.
        """
        return await read_or_make_installation()

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Return those of some flow runs that this Prefect server knows.

        Returns:
            Those that it knows.

        Raises:
            ServiceError: Prefect's API failed.
        """
        client, _ = get_or_create_client()
        asked, known = sorted(run_ids), set[UUID]()
        for first in range(0, len(asked), PAGE_SIZE):
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=asked[first : first + PAGE_SIZE]))
            with api_errors("looking flow runs up"):
                known |= {run.id for run in await client.read_flow_runs(flow_run_filter=wanted, limit=PAGE_SIZE)}
        return known

    async def longest_interval(self) -> timedelta:
        """Return the longest time between two scheduled runs of this run's deployment.

        Returns:
            The longest gap that its active schedules leave; zero without one, or where the deployment was deleted.

        Raises:
            ServiceError: Prefect's API failed.
        """
        try:
            deployment = await self._own_deployment()
        except ObjectNotFound:
            return timedelta(0)
        return await longest_interval_of(deployment) if deployment else timedelta(0)

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Schedule a run of `retire/retire`; the same rotation and moment give the same run, as long as it is to come.

        Args:
            rotation: The rotation's name.
            at: When a superseded key's overlap ends. What is past for the server, because this clock is behind, is
                scheduled for when this clock will have come to it: a run that is due at once would find the same.
            even_if_cancelled: Whether another run takes the place of one that was cancelled. By cancelling it a person
                keeps the key alive.

        Returns:
            `False` where there is no such deployment.

        Raises:
            ServiceError: Prefect's API failed; a Retry schedules it.
        """
        try:
            for attempt in count():
                flow_run = await self._scheduled_retirement(rotation, at, attempt)
                if _is_to_come(flow_run) or (flow_run.state_name == "Cancelled" and not even_if_cancelled):
                    return True
        except ObjectNotFound:
            pass
        return False

    async def _scheduled_retirement(self, rotation: str, at: datetime, attempt: int) -> FlowRun:
        client, _ = get_or_create_client()
        now, behind = self.now(), timedelta(seconds=self.seconds_behind)
        is_past_there_only = now < at <= now + behind
        with api_errors("scheduling a retirement"):
            if self._retire_deployment is None:
                self._retire_deployment = (await client.read_deployment_by_name(RETIRE_DEPLOYMENT)).id
            return await client.create_flow_run_from_deployment(
                self._retire_deployment,
                parameters={"rotation": rotation},
                state=Scheduled(scheduled_time=at + behind + SURELY_LATER if is_past_there_only else at),
                idempotency_key=f"retire {rotation} {at.isoformat()}" + (f" {attempt}" if attempt else ""),
                name=f"retire {rotation}",
                tags=[LEDGER_TAG, rotation],
            )

    async def deployed_rotation(self, name: str) -> Rotation:
        """Read what a rotation's deployment says.

        Raises:
            ConfigurationError: There is no deployment `rotate/<name>`, or its parameters are not valid.
        """
        client, _ = get_or_create_client()
        try:
            with api_errors("reading the deployment"):
                deployment = await client.read_deployment_by_name(f"rotate/{name}")
        except ObjectNotFound:
            raise ConfigurationError(f"rotation: there is no deployment rotate/{name}. Nothing was changed.") from None
        return parse_rotation(deployment.parameters.get("rotation"))

    async def destinations_of(self, rotation: str) -> set[str]:
        """Return the destinations that any deployment names for a rotation, whatever the deployment's name.

        Args:
            rotation: The rotation's name.

        Raises:
            ServiceError: Prefect's API failed.
        """
        return {place for place, rotations in (await destinations_in_use()).items() if rotation in rotations}

    async def delete_deployment(self, name: str) -> bool:
        """Delete a rotation's deployment with its schedules.

        Returns:
            `False` where there is none (any more).
        """
        client, _ = get_or_create_client()
        try:
            with api_errors("deleting the deployment"):
                deployment = await client.read_deployment_by_name(f"rotate/{name}")
                await client.delete_deployment(deployment.id)
        except ObjectNotFound:
            return False
        return True

    async def ledgers(self) -> AsyncIterator[tuple[str, Any]]:
        """Walk through the ledgers of all rotations, page by page.

        Yields:
            Each rotation's name, and the value of its variable.

        Raises:
            ServiceError: Prefect's API failed.
        """
        async for name, value in all_ledgers():
            yield name, value

    async def deployments(self) -> AsyncIterator[Deployed]:
        """Walk through the deployments of all rotations, page by page.

        Raises:
            ServiceError: Prefect's API failed.
        """
        async for entry in all_deployments():
            with api_errors("reading the deployments"):
                deployment = DeploymentResponse.model_validate(entry)
            interval = timedelta(0) if deployment.paused else await longest_interval_of(deployment)
            yield Deployed(deployment.name, rotation_of(deployment), interval)

    async def retirements_to_come(self, name: str) -> set[datetime]:
        """Return the moments, UTC, for which retirements of a rotation are scheduled.

        Raises:
            ServiceError: Prefect's API failed.
        """
        return {at for _, at in await self._retirements(name, "reading the scheduled retirements")}

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Cancel the retirements of a rotation that are still to come.

        Args:
            name: The rotation's name.
            but: The moments, UTC, at which one is still wanted.
        """
        doing = "cancelling scheduled retirements"
        found = await self._retirements(name, doing)
        client, _ = get_or_create_client()
        with api_errors(doing):
            for run_id in [run_id for run_id, at in found if at not in but]:
                await client.set_flow_run_state(run_id, Cancelled(message=f"The rotation {name} was removed."))

    async def _retirements(self, name: str, doing: str) -> list[tuple[UUID, datetime]]:
        body = {
            "flows": {"name": {"any_": ["retire"]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": [LEDGER_TAG, name]}},
        }
        found = [run async for page in pages("/flow_runs/filter", body, doing) for run in page]
        with api_errors(doing):
            # A rotation may be called like the tag that all have.
            own = [run for run in found if run["parameters"].get("rotation") == name]
            return [(UUID(run["id"]), parse_time(run["expected_start_time"])) for run in own]
