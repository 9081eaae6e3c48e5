"""The ports: what a run needs from outside of its process."""

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
    """Reads an account; changes nothing."""

    async def get_key(self, key_hash: str) -> ApiKey:
        """Return a key; `NotFoundError` if it does not exist."""

    def list_keys(self, workspace_id: str | None = None) -> AsyncIterator[ApiKey]:
        """Yield all keys of a workspace."""

    async def guardrail_of(self, key_hash: str) -> str | None:
        """Return the id of a key's guardrail."""

    def list_workspaces(self) -> AsyncIterator[str]:
        """Yield the ids of all workspaces of the account."""

    async def workspace(self, workspace_id: str) -> Workspace:
        """Return a workspace; `NotFoundError` if it does not exist."""

    def key_lists(self, kind: ListKind, workspace_id: str | None = None) -> AsyncIterator[KeyList]:
        """Yield a workspace's lists of keys."""

    async def key_list(self, kind: ListKind, list_id: str) -> KeyList:
        """Return a list of keys; `NotFoundError` if it does not exist."""

    async def uses_of(self, key_hash: str, since: datetime, until: datetime) -> list[Use]:
        """Return the uses of a key in a period, the latest first."""

    async def accepts(self, secret: SecretStr) -> Standing:
        """Return whether a key works, by using it; false only if OpenRouter rejects it."""

    async def about_itself(self) -> CurrentKey:
        """Return what OpenRouter shows about the management key itself."""

    async def check(self) -> str:
        """Verify that the management key may manage keys."""


class KeyMinter(Protocol):
    """Creates keys."""

    async def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create a key; the request is sent once."""


class KeyChanger(Protocol):
    """Changes and deletes keys."""

    async def update_key(self, key_hash: str, **changes: Any) -> ApiKey:
        """Change a key's settings; `NotFoundError` if it does not exist."""

    async def delete_key(self, key_hash: str) -> bool:
        """Delete a key; `False` if it does not exist."""

    async def assign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Assign a guardrail to a key."""

    async def unassign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Unassign a guardrail from a key."""


class ListChanger(Protocol):
    """Changes lists of keys."""

    async def replace_keys(self, which: KeyList, hashes: Sequence[str]) -> None:
        """Replace the keys in a list; the request is sent once."""


class OpenRouter(KeyReader, KeyMinter, KeyChanger, ListChanger, Protocol):
    """A connection with all of its capabilities; each step requires only those it needs."""


@dataclass(frozen=True)
class Deployed:
    """A rotation's deployment.

    Args:
        name: Its name; the rotation's, unless somebody has renamed or copied it.
        rotation: Its rotation; `None` if its parameters are invalid.
        interval: The longest time between two scheduled runs; zero without an active schedule.
    """

    name: str
    rotation: Rotation | None
    interval: timedelta


class World(Protocol):
    """Access to everything outside of the process: the real one, or a model of it in tests."""

    def now(self) -> datetime:
        """Return the time, UTC."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def load_blocks(self, destinations: Collection[str], connection: str = "") -> None:
        """Load the blocks of several destinations and a connection with one request."""

    async def connection(self, name: str) -> OpenRouter:
        """Open the connection of an `openrouter-credentials` block, once per run."""

    async def destination(self, name: str) -> Destination:
        """Open a destination, once per run."""

    async def emit(self, event: Event, rotation: str, **payload: str) -> None:
        """Emit an event."""

    def separate(self) -> AbstractAsyncContextManager[World]:
        """Return another world, which closes what was opened in it at the end of its context."""

    async def installation(self) -> str:
        """Return the id of this Prefect installation; create it at its first use."""

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Return those of some flow runs that this Prefect server knows."""

    async def longest_interval(self) -> timedelta:
        """Return the longest time between two scheduled runs of this run's deployment; zero without a schedule."""

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Schedule a run of `retire/retire`; `False` if there is no such deployment."""

    async def retirements_to_come(self, name: str) -> set[datetime]:
        """Return the times of a rotation's scheduled retirements."""

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Cancel a rotation's scheduled retirements, except for those at some times."""

    async def deployed_rotation(self, name: str) -> Rotation:
        """Return the rotation in the parameters of its deployment."""

    async def destinations_of(self, rotation: str) -> set[str]:
        """Return the destinations of a rotation in all deployments."""

    async def check_deployment(self) -> None:
        """Refuse a run whose deployment was deleted while it waited for its slot."""

    async def delete_deployment(self, name: str) -> bool:
        """Delete a rotation's deployment; `False` if it does not exist."""

    def ledgers(self) -> AsyncIterator[tuple[str, Any]]:
        """Yield the ledgers of all rotations: each name, and the stored value."""

    def deployments(self) -> AsyncIterator[Deployed]:
        """Yield the deployments of all rotations."""
