"""The ports: what a run needs of everything outside of its process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from pydantic import SecretStr

from blocks.destination import Destination
from blocks.openrouter.analytics import Use
from blocks.openrouter.keys import ApiKey, CreatedKey, CurrentKey, KeyRequest, Standing, Workspace
from blocks.openrouter.lists import KeyList, ListKind
from tasks.model.events import Event
from tasks.model.rotation import Rotation


class KeyReader(Protocol):
    """What can be asked of an account; nothing is changed."""

    async def get_key(self, key_hash: str) -> ApiKey:
        """Read one key; `NotFoundError` where there is none."""

    def list_keys(self, workspace_id: str | None = None) -> AsyncIterator[ApiKey]:
        """Walk through all keys of a workspace."""

    async def guardrail_of(self, key_hash: str) -> str | None:
        """Look up which guardrail a key has."""

    def list_workspaces(self) -> AsyncIterator[str]:
        """Walk through all workspaces of the account."""

    async def workspace(self, workspace_id: str) -> Workspace:
        """Read one workspace; `NotFoundError` where there is none."""

    def key_lists(self, kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        """Walk through the lists of a workspace that name keys."""

    async def uses_of(self, key_hash: str, since: datetime, until: datetime) -> list[Use]:
        """Say who has used a key in a time, the latest first."""

    async def accepts(self, secret: SecretStr) -> Standing:
        """Say whether a key works, by using it; only a refused one is false."""

    async def about_itself(self) -> CurrentKey:
        """Read what the management key says about itself."""

    async def check(self) -> str:
        """Prove that the management key may manage keys right now."""


class KeyMinter(Protocol):
    """What makes a new key."""

    async def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create a key, once."""


class KeyChanger(Protocol):
    """What changes or ends a key."""

    async def update_key(self, key_hash: str, **changes: Any) -> ApiKey:
        """Change a key's settings; `NotFoundError` where there is none."""

    async def delete_key(self, key_hash: str) -> bool:
        """Delete a key; `False` where there is none."""

    async def assign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Give a key its guardrail."""

    async def unassign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Take a guardrail away from a key."""


class ListKeeper(Protocol):
    """What reads and changes a list that names keys."""

    async def key_list(self, kind: ListKind, list_id: str) -> KeyList:
        """Read one list; `NotFoundError` where there is none."""

    async def replace_keys(self, which: KeyList, hashes: Sequence[str]) -> None:
        """Replace the keys that a list names, once."""


class OpenRouter(KeyReader, KeyMinter, KeyChanger, ListKeeper, Protocol):
    """Everything that a connection can do; a step names the part that it needs."""


@dataclass(frozen=True)
class Deployed:
    """What a rotation's deployment says.

    Args:
        name: Its name, which is the rotation's unless somebody has renamed or copied it.
        rotation: Its rotation; `None` where its parameters are not valid.
        interval: The longest time between two scheduled runs; nothing without an active schedule.
    """

    name: str
    rotation: Rotation | None
    interval: timedelta


class World(Protocol):
    """The way to everything outside of the process; the real one, or a model of it in tests."""

    def now(self) -> datetime:
        """Return the time, UTC."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def load_blocks(self, destinations: Collection[str], connection: str = "") -> None:
        """Read at once what is kept in Prefect of a connection and of destinations; each is opened where it is used."""

    async def connection(self, name: str) -> OpenRouter:
        """Open the connection of an `openrouter-credentials` block, once per run."""

    async def destination(self, name: str) -> Destination:
        """Open a destination, once per run."""

    async def emit(self, event: Event, rotation: str, **payload: str) -> None:
        """Emit an event."""

    def apart(self) -> AbstractAsyncContextManager[World]:
        """Open another world, which closes what was opened in it at the end of the block."""

    async def installation(self) -> str:
        """Read the id of this Prefect installation; it is made at the first use."""

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Return those of some flow runs that this Prefect server knows."""

    async def longest_interval(self) -> timedelta:
        """Return the longest time between two scheduled runs of this run's deployment; zero without a schedule."""

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Schedule a run of `retire/retire`; `False` where there is no such deployment."""

    async def retirements_to_come(self, name: str) -> set[datetime]:
        """Return the moments for which retirements of a rotation are scheduled."""

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Cancel the retirements of a rotation that are still to come, but for those at certain moments."""

    async def deployed_rotation(self, name: str) -> Rotation:
        """Read what a rotation's deployment says."""

    async def destinations_of(self, rotation: str) -> set[str]:
        """Return the destinations that any deployment names for a rotation."""

    async def check_deployment(self) -> None:
        """Refuse a run whose deployment was deleted while it waited for its slot."""

    async def delete_deployment(self, name: str) -> bool:
        """Delete a rotation's deployment; `False` where there is none."""

    def ledgers(self) -> AsyncIterator[tuple[str, Any]]:
        """Walk through the ledgers of all rotations: each name, and the value as it is stored."""

    def deployments(self) -> AsyncIterator[Deployed]:
        """Walk through the deployments of all rotations."""
