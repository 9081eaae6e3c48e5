"""A world with real clients, stand-ins on loopback, a ledger in memory, and a clock that the tests set."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import hvac
import pytest
from openrouter import OpenRouter
from openrouter.utils import BackoffStrategy, RetryConfig
from pydantic import SecretStr

import blocks
from blocks.destination import Destination
from blocks.errors import ConfigurationError, KeyRotationError, MissingBlockError
from blocks.openrouter.client import OpenRouterClient
from blocks.vault.auth import TokenAuth
from flows.apply_settings import apply_deployed_settings
from flows.audit import follow_audit
from flows.remove_rotation import remove
from flows.restore_key import restore
from flows.retire import retire_due
from flows.rotate import follow_protocol
from flows.write_off_key import follow_write_off
from sandbox import openrouter, vault
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, StoredKey
from sandbox.server import Fault, running
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tasks.audit.findings import Report
from tasks.life.plan import plan
from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.model.rotation import KeySettings, Rotation
from tasks.steps import PLAIN
from tasks.world.open_ledger import OpenLedger
from tasks.world.ports import Deployed
from tasks.world.run import Run
from tests.memory import Memory

numbers = itertools.count(1)


INSTALLATION = "abcdefg"
"""The installation's id of a `FakeWorld`."""


class FakeWorld:
    """Everything around one rotation; it is also the `World` of its runs."""

    def __init__(self) -> None:
        self.time = datetime(2026, 12, 16, 3, 30, tzinfo=UTC)
        self.openrouter = OpenRouterSandbox(now=self.now)
        self.vault = VaultSandbox(now=self.now)
        self.store = Memory()
        self.other_stores: dict[str, Memory] = {}
        self.connections = {"openrouter"}
        self.deleted_destinations: set[str] = set()
        self.is_deployed = True
        self.interval = timedelta(0)
        self.deployed: Rotation | None = None
        self.twins: list[Rotation] = []
        self.retirements: list[datetime] = []
        self.events: list[tuple[Event, dict[str, str]]] = []
        self.notes: list[str] = []
        self.runs: set[UUID] = set()
        self.id = INSTALLATION
        self.asked_for_installation = 0
        self.runs_asked_for: list[int] = []
        self.rotation = Rotation(
            name="checkout",
            connection="openrouter",
            key=KeySettings(name="checkout service", limit_usd=50, limit_reset="monthly"),
            destinations=["vault-secret/checkout"],
            overlap=timedelta(hours=24),
        )
        self.app = openrouter.create_app(self.openrouter)
        self.vault_app = vault.create_app(self.vault)
        self.url = ""
        self.client: OpenRouterClient
        self.block: blocks.VaultSecret | blocks.InfisicalSecret

    # --- what a run needs from its world ---

    def now(self) -> datetime:
        """Return the current time."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """Advance the clock instead of sleeping."""
        self.time += timedelta(seconds=seconds)

    async def load_blocks(self, destinations: Collection[str], connection: str = "") -> None:
        """Load nothing in advance."""

    async def connection(self, name: str) -> OpenRouterClient:
        """Return the client of the only account, for every known name."""
        if name not in self.connections:
            raise MissingBlockError(f"rotation.connection: the block openrouter-credentials/{name} does not exist.")
        return self.client

    async def destination(self, name: str) -> Destination:
        """Return the only destination."""
        if name in self.deleted_destinations:
            raise MissingBlockError(f"rotation.destinations: the block {name} does not exist. Nothing was created.")
        return self.block

    async def emit(self, event: Event, rotation: str, **payload: Any) -> None:
        """Record the event."""
        assert set(payload) == set(event.payload), f"{event} tells {sorted(payload)}"
        self.events.append((event, {"rotation": rotation, **payload}))

    async def check_deployment(self) -> None:
        """Accept every run, because none waits in a deployment here."""

    async def installation(self) -> str:
        """Return this installation's id."""
        self.asked_for_installation += 1
        return self.id

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Return those runs that have existed."""
        self.runs_asked_for.append(len(run_ids))
        return self.runs & set(run_ids)

    @asynccontextmanager
    async def separate(self) -> AsyncIterator[FakeWorld]:
        """Yield the same world; the test closes its destinations."""
        yield self

    async def longest_interval(self) -> timedelta:
        """Return the schedule's interval."""
        return self.interval

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Record the retirement."""
        self.retirements.append(at)
        return True

    async def retirements_to_come(self, name: str) -> set[datetime]:
        """Return the scheduled retirements."""
        return set(self.retirements)

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Remove scheduled retirements."""
        self.retirements = [at for at in self.retirements if at in but]

    async def deployed_rotation(self, name: str) -> Rotation:
        """Return the deployment's rotation."""
        if not self.is_deployed:
            raise ConfigurationError(f"rotation: there is no deployment rotate/{name}. Nothing was changed.")
        return self.deployed or self.rotation

    async def destinations_of(self, rotation: str) -> set[str]:
        """Return the destinations of the deployment, if it exists, and of its copies."""
        deployed = [self.deployed or self.rotation] if self.is_deployed else []
        return {name for each in [*deployed, *self.twins] for name in each.destinations}

    async def delete_deployment(self, name: str) -> bool:
        """Delete the deployment."""
        was_deployed, self.is_deployed = self.is_deployed, False
        return was_deployed

    async def ledgers(self) -> AsyncIterator[tuple[str, Any]]:
        """Yield the ledger, if it exists, and those of other rotations."""
        for name, store in {"checkout": self.store, **self.other_stores}.items():
            if store.value is not None:
                yield name, deepcopy(store.value)

    async def deployments(self) -> AsyncIterator[Deployed]:
        """Yield the deployment, if it exists, and its copies."""
        for twin in self.twins:
            yield Deployed("checkout-eu", twin, self.interval)
        if self.is_deployed:
            yield Deployed("checkout", self.deployed or self.rotation, self.interval)

    # --- what tests do with it ---

    def later(self, **how: float) -> None:
        """Advance the clock."""
        self.time += timedelta(**how)

    def change(self, **changes: Any) -> None:
        """Replace fields of the rotation; those of its groups as `key={...}` and `retirement={...}`."""
        fields = self.rotation.model_dump()
        for name, value in changes.items():
            fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
        self.rotation = Rotation.model_validate(fields)

    def open(self, **who: Any) -> Run:
        """Start a run."""
        identity = Identity(who.pop("run_id", None) or uuid4(), who.pop("first_started", self.time), **who)
        self.runs.add(identity.id)
        return Run("checkout", identity, OpenLedger("checkout", self.store, identity.id), self)

    async def _do(self, run: Run, work: Any) -> str:
        try:
            return str(await work)
        finally:
            self.notes = run.notes

    async def rotate(self, **who: Any) -> str:
        """Rotate once."""
        run = self.open(**who)
        return await self._do(run, follow_protocol(run, self.rotation, PLAIN))

    async def failed_at(self, method: str, path: str, status: int, **who: Any) -> dict[str, Any]:
        """Start a rotation that fails at a request, as do later ones, and return who its Retry is."""
        again = {**who, "run_id": uuid4(), "first_started": self.time}
        self.app.state.faults.add(Fault("before", method, path, status=status))
        await self.failure(self.rotate(**again))
        return {**again, "attempt": 2}

    async def plan(self) -> tuple[list[str], list[str]]:
        """Return what a plan has checked, and the steps of the run that it describes."""
        run = self.open()
        try:
            return await plan(run, self.rotation)
        finally:
            self.notes = run.notes

    async def retire(self) -> str:
        """Retire once."""
        run = self.open()
        return await self._do(run, retire_due(run, PLAIN))

    async def restore(self, label: str = "", **who: Any) -> str:
        """Restore a superseded key."""
        run = self.open(**who)
        return await self._do(run, restore(run, label, PLAIN))

    async def apply(self) -> str:
        """Apply the deployment's settings to the current key."""
        run = self.open()
        return await self._do(run, apply_deployed_settings(run))

    async def remove(self, revoke_at: datetime | None, *, empty: bool = False, **who: Any) -> str:
        """Remove the rotation."""
        run = self.open(**who)
        return await self._do(run, remove(run, revoke_at, PLAIN, empty=empty))

    async def write_off(self, label: str, reason: str = "the account was closed", **who: Any) -> str:
        """Write a key off."""
        run = self.open(**who)
        return await self._do(run, follow_write_off(run, label, reason))

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[Run]:
        """Open a rotation's ledger, like an audit with repair."""
        store = self.store if name == "checkout" else self.other_stores.setdefault(name, Memory())
        identity = Identity(uuid4(), self.time)
        yield Run(name, identity, OpenLedger(name, store, identity.id), self)

    async def audit(self, *, repair: bool = False, older_than: timedelta = timedelta(days=90)) -> Report:
        """Audit the account."""
        return await follow_audit(self, "openrouter", older_than, self.opened if repair else None)

    async def failure(self, work: Any) -> str:
        """Expect a plain error, and return its sentence."""
        with pytest.raises(KeyRotationError) as failed:
            await work
        return str(failed.value)

    @property
    def ledger(self) -> Ledger:
        """The stored ledger."""
        return Ledger.model_validate(self.store.value)

    @property
    def superseded(self) -> Superseded:
        """The only superseded key."""
        (key,) = self.ledger.superseded
        return key

    def everything(self) -> Any:
        """Return everything in this world, for a later comparison."""
        keys = self.openrouter.keys, self.openrouter.created, self.openrouter.deleted, self.openrouter.guardrails
        written = vars(self.vault.namespaces[""]["secret"])["records"]
        return deepcopy((self.store.value, keys, written, self.retirements, self.events))

    def in_vault(self) -> str:
        """Return what Vault holds, as its own client reads it."""
        block: Any = self.block
        client = hvac.Client(url=block.credentials.url, token=ROOT_TOKEN)
        read = client.secrets.kv.v2.read_secret_version(path=block.path, raise_on_deleted_version=True)
        return str(read["data"]["data"]["value"])

    async def held(self) -> StoredKey:
        """Return the key that the destination holds."""
        return await self.held_by(self.block)

    async def held_by(self, place: Destination) -> StoredKey:
        """Return the key that a destination holds."""
        value = (await place.read_content()).value
        assert value is not None
        return self.openrouter.by_secret[value.get_secret_value()]

    def key(self, key_hash: str) -> StoredKey:
        """Return a key at OpenRouter."""
        return self.openrouter.keys[key_hash]

    def other_workspace(self) -> str:
        """Create a second workspace in the account, and return its id."""
        self.openrouter.accounts[0].workspaces.append(str(uuid4()))
        return self.openrouter.accounts[0].workspaces[-1]

    def delete_workspace(self, workspace: str) -> None:
        """Delete a workspace with the keys in it, as a person may do."""
        self.openrouter.accounts[0].workspaces.remove(workspace)
        for key in [key for key in self.openrouter.keys.values() if key.workspace_id == workspace]:
            self.openrouter.delete_key(key)

    def spend(self, key: StoredKey, usd: str) -> None:
        """Spend money with a key, like a consumer."""
        key.spent.append((self.time, Decimal(usd)))
        key.last_used_at = self.time

    def use(self, key: StoredKey) -> int:
        """Call a model with a key, and return the status of the answer."""
        body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"Authorization": f"Bearer {key.secret}"}
        return httpx.post(f"{self.url}/api/v1/chat/completions", json=body, headers=headers).status_code

    def sdk(self) -> OpenRouter:
        """Return OpenRouter's own client, as an independent judge."""
        return OpenRouter(
            api_key=DEFAULT_MANAGEMENT_KEY,
            server_url=f"{self.url}/api/v1",
            retry_config=RetryConfig("none", BackoffStrategy(0, 0, 0, 0), False),
        )


@pytest.fixture
async def world() -> AsyncIterator[FakeWorld]:
    """A new world."""
    world = FakeWorld()
    async with AsyncExitStack() as stack:
        world.url = stack.enter_context(running(world.app))
        vault_url = stack.enter_context(running(world.vault_app))
        connection = blocks.OpenRouterCredentials(
            management_key=SecretStr(DEFAULT_MANAGEMENT_KEY), base_url=f"{world.url}/api/v1"
        )
        world.client = await stack.enter_async_context(connection.get_client())
        credentials = blocks.VaultCredentials(url=vault_url, auth=TokenAuth(token=SecretStr(ROOT_TOKEN)))
        world.block = blocks.VaultSecret(credentials=credentials, path=f"apps/app-{next(numbers)}")
        stack.push_async_callback(world.block.aclose)
        yield world
