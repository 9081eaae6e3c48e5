"""The model's implementation of `tasks.world.ports.World`, as one process sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from blocks.errors import (
    ConfigurationError,
    MissingBlockError,
)
from tasks.model.events import Event
from tasks.model.rotation import Rotation
from tasks.world.ports import Deployed
from tests.simulation.promises import promise
from tests.simulation.world.destinations import ModelDestination, ModelVault
from tests.simulation.world.openrouter import ModelOpenRouter
from tests.simulation.world.process import Process


class ModelWorld:
    """Access to everything outside of the process, in the model."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> datetime:
        """Return the time."""
        return self._process.model.time

    async def sleep(self, seconds: float) -> None:
        """Advance the time."""
        self._process.model.time += timedelta(seconds=seconds)

    async def load_blocks(self, destinations: Collection[str], connection: str = "") -> None:
        """Do nothing: the model's blocks need not be loaded."""

    async def connection(self, name: str) -> ModelOpenRouter:
        """Open a connection."""
        if name not in self._process.model.connections or name in self._process.model.deleted_connections:
            raise MissingBlockError(f"rotation.connection: the block openrouter-credentials/{name} does not exist.")
        return ModelOpenRouter(self._process, name)

    async def destination(self, name: str) -> ModelDestination:
        """Open a destination."""
        if name not in self._process.model.places or not self._process.model.places[name].exists:
            raise MissingBlockError(f"rotation.destinations: the block {name} does not exist.")
        kind = ModelVault if self._process.model.places[name].checks_and_sets else ModelDestination
        return kind(self._process, name)

    async def installation(self) -> str:
        """Read the id of this installation."""
        return await self._process.effect("look the installation up", lambda: self._process.model.installation)

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Return the runs that Prefect knows."""
        return await self._process.effect("look runs up", lambda: self._process.model.runs & set(run_ids))

    @asynccontextmanager
    async def separate(self) -> AsyncIterator[ModelWorld]:
        """Open another world."""
        yield ModelWorld(self._process)

    async def emit(self, event: Event, rotation: str, **payload: str) -> None:
        """Emit an event; it is not an effect that can fail, because no run waits for it."""
        promise(set(payload) == set(event.payload), f"{event} tells {sorted(payload)}")
        self._process.model.events.append({"event": event.value, "rotation": rotation, **payload})
        self._process.model.watch(f"tell of {event.value}")

    async def check_deployment(self) -> None:
        """Do nothing: in the model, no run waits for a slot."""

    async def longest_interval(self) -> timedelta:
        """Return the longest interval."""
        return self._process.model.interval

    async def deployed_rotation(self, name: str) -> Rotation:
        """Read the deployment."""
        found = await self._process.effect("read the deployment", lambda: self._process.model.deployments.get(name))
        if found is None:
            raise ConfigurationError(f"rotation: there is no deployment rotate/{name}.")
        return found

    async def destinations_of(self, rotation: str) -> set[str]:
        """Return where the deployments of a rotation publish."""
        found = await self._process.effect("read the deployments", lambda: dict(self._process.model.deployments))
        return {place for each in found.values() if each.name == rotation for place in each.destinations}

    async def delete_deployment(self, name: str) -> bool:
        """Delete the deployment."""
        return await self._process.effect(
            "delete the deployment", lambda: self._process.model.deployments.pop(name, None) is not None
        )

    async def ledgers(self) -> AsyncIterator[tuple[str, Any]]:
        """Yield the newest term of each ledger."""
        found = await self._process.effect("read the ledgers", self._process.model.ledgers)
        for name, value in found.items():
            yield name, value

    async def deployments(self) -> AsyncIterator[Deployed]:
        """Yield the deployments."""
        found = await self._process.effect("read the deployments", lambda: dict(self._process.model.deployments))
        for name, rotation in found.items():
            yield Deployed(name, rotation, self._process.model.interval)

    async def retirements_to_come(self, name: str) -> set[datetime]:
        """Return when retirements are scheduled that were not cancelled."""
        retirements = self._process.model.retirements
        return await self._process.effect(
            "read the retirements",
            lambda: {at for (rotation, at), live in retirements.items() if live and rotation == name},
        )

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Cancel the scheduled retirements, except for some."""
        await self._process.effect("cancel the retirements", lambda: self._process.model.cancel_retirements(name, but))

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Schedule a retirement; a cancelled one stays cancelled, unless it is to be replaced."""
        retirements = self._process.model.retirements
        await self._process.effect(
            "schedule the retirement",
            lambda: retirements.update({(rotation, at): even_if_cancelled or retirements.get((rotation, at), True)}),
        )
        return True
