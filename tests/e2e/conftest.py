"""One Prefect server for the session, and the stand-ins, each with fresh state for every test."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow, get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from pydantic import SecretStr
from starlette.applications import Starlette

import blocks
from blocks.vault.auth import TokenAuth
from flows import deployments
from flows.automations import make_automations
from flows.worker import FLOWS
from sandbox import infisical, openrouter, vault
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.postgres import PROGRAMS as POSTGRESQL
from sandbox.redis import PROGRAM as REDIS
from sandbox.server import running
from sandbox.setup import prepare
from sandbox.stack import WORKER_TYPE, Stack
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tasks.model.rotation import KeySettings, Rotation
from tests.e2e.driver import deploy_retirements, end_all_runs
from tests.e2e.receivers import Receiver, web_receiver

# Tests that share a server run in one process. To balance the load, tests with workers have a group of their own, and
# so have those that kill processes, that follow pages or the life of keys, and that wait long or start everything anew.
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]
with_processes = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-processes")]
with_pages = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-pages")]
with_kills = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-kills")]
needs_postgresql = pytest.mark.skipif(
    not (POSTGRESQL or os.environ.get("REQUIRE_FLEET")),
    reason="PostgreSQL is not installed: apt-get install postgresql",
)
needs_redis = pytest.mark.skipif(
    not (REDIS or os.environ.get("REQUIRE_FLEET")), reason="Redis is not installed: apt-get install redis-server"
)
on_postgresql = [
    pytest.mark.e2e,
    pytest.mark.exhaustive,
    pytest.mark.xdist_group("e2e-postgresql"),
    needs_postgresql,
]
with_long_waits = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-long-waits")]
without_worker = [*pytestmark, pytest.mark.usefixtures("no_worker")]
PERSISTENT = {"PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true", "PREFECT_LOGGING_LEVEL": "DEBUG"}
# Many servers and workers share two cores here, so idle ones must not use them. A server keeps looking for tasks of
# every run cancelled within a day, and each test cancels the runs that it leaves behind.
UNHURRIED = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "3600",
}
LEFT_WITHIN_SECONDS = 5
numbers = itertools.count(1)


@dataclass
class Services:
    """Everything that a rotation talks to, with what tests need to know about it."""

    stack: Stack
    openrouter: OpenRouterSandbox
    openrouter_app: Starlette
    openrouter_url: str
    vault: VaultSandbox
    vault_app: Starlette
    vault_url: str
    infisical: infisical.InfisicalSandbox
    infisical_app: Starlette
    infisical_url: str
    connection: str
    worker_type: str = "process"
    """The worker type that a test imitates when it executes a flow run in a process of its own."""

    def rotation(self, **changes: Any) -> Rotation:
        """Return a rotation with a unique name and one Prefect secret as its destination."""
        name = f"rotation-{next(numbers)}"
        rotation = Rotation(
            name=name,
            connection=self.connection,
            key=KeySettings(name="checkout service", limit_usd=50, limit_reset="monthly"),
            destinations=[f"secret/{name}"],
            overlap=timedelta(0),
        )
        return rotation.model_copy(update=changes)

    async def connect(self, url: str) -> None:
        """Point the rotations' connection to a base URL."""
        key = SecretStr(DEFAULT_MANAGEMENT_KEY)
        await blocks.OpenRouterCredentials(management_key=key, base_url=url).asave(self.connection, overwrite=True)

    def guardrail(self) -> str:
        """Return a guardrail of the account."""
        workspace, made = self.openrouter.accounts[0].workspaces[0], str(uuid4())
        self.openrouter.guardrails[made] = {"id": made, "workspace_id": workspace}
        return made

    async def prepare(self, rotation: Rotation) -> Rotation:
        """Create the blocks of a rotation's destinations."""
        for destination in rotation.destinations:
            slug, _, name = destination.partition("/")
            await self.make(slug).asave(name, overwrite=True)
        return rotation

    def make(self, slug: str) -> Any:
        """Return an unsaved block of a type, with an empty place."""
        match slug:
            case "secret":
                return Secret(value="not-yet-rotated")
            case "vault-secret":
                credentials = blocks.VaultCredentials(url=self.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
                return blocks.VaultSecret(credentials=credentials, path=f"apps/app-{next(numbers)}")
            case _:
                identity = blocks.InfisicalCredentials(
                    host=self.infisical_url, client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET
                )
                return blocks.InfisicalSecret(
                    credentials=identity,
                    project_id=infisical.PROJECT_ID,
                    environment="prod",
                    name=f"KEY_{next(numbers)}",
                )


@pytest.fixture(scope="session")
def stack(migrated: Callable[[Stack], Stack]) -> Iterator[Stack]:
    """A Prefect server that persists results and logs at DEBUG, the worst case for secrets."""
    with migrated(Stack(PERSISTENT | UNHURRIED)) as stack:
        yield from in_use(stack)


def in_use(stack: Stack) -> Iterator[Stack]:
    """Prepare a server for the tests that share it, and leave it at the end."""
    with stack.as_client():
        asyncio.run(prepared())
    yield stack
    with stack.as_client():
        # Otherwise it would be sent at exit, with many retries, to a server that has stopped.
        leave_server()


async def prepared() -> None:
    """Create what every installation has: blocks, a work pool, and the deployment for retirements."""
    await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY))
    await deploy_retirements()


def leave_server() -> None:
    """Flush what this process sends in the background, because the next test may use another server."""
    APILogWorker.drain_all(timeout=LEFT_WITHIN_SECONDS)
    EventsWorker.drain_all(timeout=LEFT_WITHIN_SECONDS)


@pytest.fixture
def connection() -> str:
    """The name of a connection that only this test uses."""
    return f"openrouter-{next(numbers)}"


@pytest.fixture
async def services(stack: Stack, connection: str) -> AsyncIterator[Services]:
    """The stand-ins with fresh state, and a connection to them; all of the test's runs end with it."""
    o, v, i = OpenRouterSandbox(), VaultSandbox(), infisical.InfisicalSandbox()
    apps = openrouter.create_app(o), vault.create_app(v), infisical.create_app(i)
    with running(apps[0]) as o_url, running(apps[1]) as v_url, running(apps[2]) as i_url, stack.as_client():
        services = Services(stack, o, apps[0], f"{o_url}/api/v1", v, apps[1], v_url, i, apps[2], i_url, connection)
        await services.connect(services.openrouter_url)
        yield services
        await end_all_runs()


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep workers from taking runs, like a worker whose only slot is taken by the form's own run."""
    monkeypatch.setattr(deployments, "STARTS_WITHIN_SECONDS", 0.0)


@pytest.fixture
def start_flow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start a run of a test's own flow, which the worker treats as one of the package."""

    async def begin(what: Flow[..., Any], pool: str, *, known: bool = True, **more: Any) -> UUID:
        entrypoint = f"flows.test:{what.fn.__name__}"
        if known:
            monkeypatch.setitem(FLOWS, entrypoint, what)
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=pool, type=WORKER_TYPE), overwrite=True)
            deployment = await client.create_deployment(
                await client.create_flow(what), pool, work_pool_name=pool, entrypoint=entrypoint, pull_steps=[], **more
            )
            return (await client.create_flow_run_from_deployment(deployment)).id

    return begin


@pytest.fixture
async def no_automations(services: Services) -> AsyncIterator[None]:
    """Start and end without automations."""
    await delete_automations()
    yield
    await delete_automations()


async def delete_automations() -> None:
    """Delete this project's automations."""
    async with get_client() as client:
        for automation in await client.read_automations():
            if automation.name.startswith("key-rotation-"):
                await client.delete_automation(automation.id)


@pytest.fixture
async def on_call(no_automations: None) -> AsyncIterator[Receiver]:
    """The person on call, whose notification block was filled in and given to the automations."""
    with web_receiver() as receiver:
        block = CustomWebhookNotificationBlock(
            name="on-call", url=receiver.url, method="POST", json_data={"text": "{{subject}} | {{body}}"}
        )
        await block.asave("on-call", overwrite=True)
        await make_automations({"notify": "custom-webhook/on-call"})
        yield receiver
