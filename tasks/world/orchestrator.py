"""The ports, implemented with Prefect: its API, its stored blocks, the clock."""

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
from blocks.login import LoginBlock
from blocks.openrouter.client import OpenRouterClient
from tasks.model.events import Event, resource
from tasks.model.rotation import Rotation, parse_rotation
from tasks.world.api import OWN_TAG, PAGE_SIZE, api_errors, pages, parse_time
from tasks.world.connections import block_of, open_connection
from tasks.world.deployments import all_deployments, longest_interval_of, rotation_of
from tasks.world.destinations import PrefectSecret, open_destination
from tasks.world.installation import read_or_make_installation
from tasks.world.inventory import destinations_in_use
from tasks.world.ledgers import all_ledgers
from tasks.world.ports import Deployed
from tasks.world.stored_blocks import load_blocks

RETIRE_DEPLOYMENT = "retire/retire"
SURELY_LATER = timedelta(minutes=1)
"""The margin for a run that is scheduled by a clock that is behind, on top of the difference."""


def seconds_behind(now: datetime) -> float:
    """Return how many seconds a clock is behind the server's, judged by the start of this flow run.

    Args:
        now: The time of that clock, UTC.
    """
    context = FlowRunContext.get()
    state = context.flow_run.state if context and context.flow_run else None
    # The server stamps each state, so the time of the present state has passed there.
    return max((state.timestamp - now).total_seconds(), 0.0) if state else 0.0


def _is_to_come(flow_run: FlowRun) -> bool:
    # This run itself is not to come, even if a slow clock makes it look early.
    own = flow_run_context.get_id() == str(flow_run.id)
    return flow_run.state is None or not (flow_run.state.is_final() or own)


class PrefectWorld:
    """Access to everything outside of the process; an async context manager that closes its connections."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._connections: dict[str, OpenRouterClient] = {}
        self._destinations: dict[str, Destination] = {}
        self._logins: dict[UUID, LoginBlock] = {}
        self._blocks: dict[str, Block] = {}
        self._retire_deployment: UUID | None = None
        self.seconds_behind = seconds_behind(self.now())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def separate(self) -> PrefectWorld:
        """Return another world, which closes what was opened in it at the end of its context."""
        return PrefectWorld()

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def load_blocks(self, destinations: Collection[str], connection: str = "") -> None:
        """Load several blocks with one request: those that are not open yet, and Prefect's secrets as they are now.

        A block that cannot be loaded is skipped: opening it loads it alone, and reports what is wrong.

        Args:
            destinations: Type slug and name of each destination's block.
            connection: The name of an `openrouter-credentials` block to load, too.

        Raises:
            ServiceError: Prefect's API failed.
        """
        secrets = {
            name: destination
            for name, destination in self._destinations.items()
            if isinstance(destination, PrefectSecret) and destination.is_read
        }
        wanted = [name for name in destinations if name in secrets or name not in {*self._destinations, *self._blocks}]
        if connection and connection not in self._connections:
            wanted.append(block_of(connection))
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
            ConfigurationError: The block does not exist, or is invalid.
        """
        if name not in self._connections:
            self._connections[name] = await self._open.enter_async_context(await open_connection(name, self._blocks))
        return self._connections[name]

    async def destination(self, name: str) -> Destination:
        """Open a destination, once per run; destinations with the same credentials block share its login.

        Args:
            name: The block's type slug and name.

        Raises:
            ConfigurationError: The block does not exist, or is no secret block.
        """
        if name not in self._destinations:
            destination = await open_destination(name, logins=self._logins, loaded=self._blocks)
            self._open.push_async_callback(destination.aclose)
            self._destinations[name] = destination
        return self._destinations[name]

    async def emit(self, event: Event, rotation: str, **payload: str) -> None:
        """Emit an event through a queue, so that an unreachable server neither delays nor fails the run.

        Args:
            event: What happened.
            rotation: The rotation's name.
            **payload: Further fields; never a secret.
        """
        emit_event(event.value, resource(rotation), payload={"rotation": rotation, **payload})

    async def check_deployment(self) -> None:
        """Refuse a run whose deployment was deleted while it waited; it would recreate a removed rotation.

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
        """Return the id of this Prefect installation; create it at its first use.

        Raises:
            ConfigurationError: The variable that holds it was changed to something else.
            ServiceError: Prefect's API failed.
        """
        return await read_or_make_installation()

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Return those of some flow runs that this Prefect server knows.

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
            The longest gap between its active schedules' runs; zero without one, or if the deployment was deleted.

        Raises:
            ServiceError: Prefect's API failed.
        """
        try:
            deployment = await self._own_deployment()
        except ObjectNotFound:
            return timedelta(0)
        return await longest_interval_of(deployment) if deployment else timedelta(0)

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Schedule a run of `retire/retire`, unless the rotation has one to come at this time.

        Args:
            rotation: The rotation's name.
            at: When a superseded key's overlap ends; if that has passed, the run starts at once. If only the server's
                clock has passed that time, the run is scheduled for when this clock has passed it, too; otherwise it
                would start at once and find the key not due yet.
            even_if_cancelled: Whether to replace a cancelled retirement, by whose cancellation a person has kept the
                key alive.

        Returns:
            `False` if there is no such deployment.

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
                tags=[OWN_TAG, rotation],
            )

    async def deployed_rotation(self, name: str) -> Rotation:
        """Return the rotation in the parameters of its deployment.

        Raises:
            ConfigurationError: The deployment `rotate/<name>` does not exist, or its parameters are invalid.
        """
        client, _ = get_or_create_client()
        try:
            with api_errors("reading the deployment"):
                deployment = await client.read_deployment_by_name(f"rotate/{name}")
        except ObjectNotFound:
            raise ConfigurationError(f"rotation: there is no deployment rotate/{name}. Nothing was changed.") from None
        return parse_rotation(deployment.parameters.get("rotation"))

    async def destinations_of(self, rotation: str) -> set[str]:
        """Return the destinations of a rotation in all deployments, whatever their names.

        Args:
            rotation: The rotation's name.

        Raises:
            ServiceError: Prefect's API failed.
        """
        return {name for name, rotations in (await destinations_in_use()).items() if rotation in rotations}

    async def delete_deployment(self, name: str) -> bool:
        """Delete a rotation's deployment with its schedules.

        Returns:
            `False` if it does not exist (any more).
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
        """Yield the ledgers of all rotations, read page by page.

        Yields:
            Each rotation's name, and its newest term's value.

        Raises:
            ServiceError: Prefect's API failed.
        """
        async for name, value in all_ledgers():
            yield name, value

    async def deployments(self) -> AsyncIterator[Deployed]:
        """Yield the deployments of all rotations, read page by page.

        Raises:
            ServiceError: Prefect's API failed.
        """
        async for entry in all_deployments():
            with api_errors("reading the deployments"):
                deployment = DeploymentResponse.model_validate(entry)
            interval = timedelta(0) if deployment.paused else await longest_interval_of(deployment)
            yield Deployed(deployment.name, rotation_of(deployment), interval)

    async def retirements_to_come(self, name: str) -> set[datetime]:
        """Return the times, UTC, of a rotation's scheduled retirements.

        Raises:
            ServiceError: Prefect's API failed.
        """
        return {at for _, at in await self._retirements(name, "reading the scheduled retirements")}

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Cancel a rotation's scheduled retirements.

        Args:
            name: The rotation's name.
            but: The times, UTC, of those to keep.
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
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": [OWN_TAG, name]}},
        }
        found = [run async for page in pages("/flow_runs/filter", body, doing) for run in page]
        with api_errors(doing):
            # The tags match any rotation if this one is called like the tag that all have.
            own = [run for run in found if run["parameters"].get("rotation") == name]
            return [(UUID(run["id"]), parse_time(run["expected_start_time"])) for run in own]
