"""The real world of a run: Prefect's API, the blocks, the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.utilities import get_or_create_client
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException

from blocks.errors import ConfigurationError, PlaceLostError, ServiceError
from blocks.openrouter import OpenRouterClient, OpenRouterCredentials
from tasks.destinations import Destination, load_block, open_destination
from tasks.ledger import ledger_variable

RETIRE_DEPLOYMENT = "retire/retire"
LEDGER_TAG = "key-rotation"


@contextmanager
def plainly(doing: str) -> Iterator[None]:
    """Tell an error of Prefect's API in one sentence; its own text may quote what was sent."""
    try:
        yield
    except (ObjectNotFound, ObjectAlreadyExists):
        raise
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(
            f"Prefect's API failed while {doing} ({type(error).__name__}).", outcome_unknown=True, retryable=True
        ) from None


class VariableStore:
    """A ledger's place in Prefect: one variable per rotation.

    Args:
        rotation: The rotation's name.
    """

    def __init__(self, rotation: str) -> None:
        self._name = ledger_variable(rotation)

    async def read(self) -> Any | None:
        """Read the value, `None` where there is none."""
        client, _ = get_or_create_client()
        with plainly("reading the ledger"):
            variable = await client.read_variable_by_name(self._name)
        return None if variable is None else variable.value

    async def create(self, value: dict[str, Any]) -> None:
        """Write the first value; `PlaceLostError` where there is one already."""
        client, _ = get_or_create_client()
        try:
            with plainly("writing the ledger"):
                await client.create_variable(VariableCreate(name=self._name, value=value, tags=[LEDGER_TAG]))
        except ObjectAlreadyExists:
            raise PlaceLostError(f"Another run has just written {self._name}, so this one stopped.") from None

    async def update(self, value: dict[str, Any]) -> None:
        """Write the next value."""
        client, _ = get_or_create_client()
        with plainly("writing the ledger"):
            await client.update_variable(VariableUpdate(name=self._name, value=value, tags=[LEDGER_TAG]))


class PrefectWorld:
    """The way to everything outside of the process; use it in `async with`, so that connections are closed."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._connections: dict[str, OpenRouterClient] = {}
        self._destinations: dict[str, Destination] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def now(self) -> datetime:
        """Tell the time, UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def connection(self, name: str) -> OpenRouterClient:
        """Open the connection of an `openrouter-credentials` block, once per run.

        Args:
            name: The block's name.

        Returns:
            The client, closed when the run ends.

        Raises:
            ConfigurationError: There is no such block, or it is not valid.
        """
        if name not in self._connections:
            block = await load_block(f"openrouter-credentials/{name}", "rotation.connection")
            if not isinstance(block, OpenRouterCredentials):
                raise ConfigurationError(f"rotation.connection: {name} is not an OpenRouter connection.")
            self._connections[name] = await self._open.enter_async_context(block.get_client())
        return self._connections[name]

    async def destination(self, name: str) -> Destination:
        """Open a destination, once per run.

        Args:
            name: The block's type slug and name.

        Returns:
            The destination, closed when the run ends.

        Raises:
            ConfigurationError: There is no such block, or it is no secret.
        """
        if name not in self._destinations:
            destination = await open_destination(name)
            self._open.push_async_callback(destination.aclose)
            self._destinations[name] = destination
        return self._destinations[name]

    async def knows_run(self, run_id: UUID) -> bool:
        """Say whether this Prefect server knows a flow run.

        Args:
            run_id: The flow run's id.

        Returns:
            Whether it does.
        """
        client, _ = get_or_create_client()
        try:
            with plainly("looking a flow run up"):
                await client.read_flow_run(run_id)
        except ObjectNotFound:
            return False
        return True

    async def schedule_retirement(self, rotation: str, at: datetime) -> bool:
        """Schedule a run of `retire/retire`; the same rotation and moment give the same run.

        Args:
            rotation: The rotation's name.
            at: When a superseded key's overlap ends.

        Returns:
            `False` where there is no such deployment.
        """
        try:
            await arun_deployment(
                RETIRE_DEPLOYMENT,
                parameters={"rotation": rotation},
                scheduled_time=at,
                timeout=0,
                as_subflow=False,
                idempotency_key=f"retire {rotation} {at.isoformat()}",
                flow_run_name=f"retire {rotation}",
                tags=[LEDGER_TAG, rotation],
            )
        except ObjectNotFound:
            return False
        return True
