"""The page back-up-and-restore.md, followed on the embedded database and on PostgreSQL."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.fernet import Fernet
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.variables import Variable
from pydantic import SecretStr

import blocks
from blocks.vault.auth import TokenAuth
from flows import audit, retire, rotate
from sandbox import openrouter, vault
from sandbox.isolation import DIRECTORY
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.postgres import PROGRAMS, settings_of
from sandbox.postgres import postgres as running_postgres
from sandbox.server import running
from sandbox.stack import Stack
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tasks.model.rotation import KeySettings, Rotation
from tests.by_hand import end_overlap, ledger_of
from tests.docs import pages
from tests.e2e.conftest import needs_postgresql, with_long_waits
from tests.e2e.driver import deploy, deploy_retirements

pytestmark = with_long_waits
BACK_UP, PG_DUMP, SHOW_ID, RESTORE, PG_RESTORE, SET_ID, DROP_BLOCKS = [
    block for block in pages.read("how-to/back-up-and-restore.md") if block.language == "sh"
]
OUTSIDE, INSIDE = "outside", "inside"
"""Two rotations: one to Vault, and one to a secret in Prefect's database, which is restored with it."""


class Place:
    """A Prefect server, and the services that its backups do not cover."""

    def __init__(self, stack: Stack, openrouter_url: str, vault_url: str, account: OpenRouterSandbox) -> None:
        self.stack = stack
        self.account = account
        self.vault_url = vault_url
        self.openrouter_url = f"{openrouter_url}/api/v1"

    def rotation(self, name: str) -> Rotation:
        """Return one of the two rotations; the inside one revokes at once."""
        return Rotation(
            name=name,
            connection="openrouter",
            key=KeySettings(name="checkout service", limit_usd=50),
            destinations=[f"vault-secret/{name}" if name == OUTSIDE else f"secret/{name}"],
            overlap=timedelta(days=1) if name == OUTSIDE else timedelta(0),
        )

    async def fill_in(self) -> None:
        """Create the blocks."""
        key = SecretStr(DEFAULT_MANAGEMENT_KEY)
        await blocks.OpenRouterCredentials(management_key=key, base_url=self.openrouter_url).asave("openrouter")
        credentials = blocks.VaultCredentials(url=self.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
        await blocks.VaultSecret(credentials=credentials, path="apps/outside").asave(OUTSIDE)
        await Secret(value="not-yet-rotated").asave(INSIDE)

    async def rotate(self, *names: str) -> None:
        """Rotate, and let the keys become old enough for an audit to judge them."""
        for name in names:
            state = await rotate(self.rotation(name), return_state=True)
            assert state.is_completed(), state.message
        if INSIDE in names:
            # If the server was busy for a moment, a late write is possible, and the run keeps the superseded key.
            await end_overlap(INSIDE)
            await retire(INSIDE, return_state=True)
        for key in self.account.keys.values():
            key.created_at -= timedelta(hours=2)

    async def audit(self, *, repair: bool) -> str:
        """Audit the account, and return the final message."""
        return str((await audit("openrouter", repair=repair, return_state=True)).message)

    async def held(self, name: str) -> str:
        """Return what consumers read."""
        if name == INSIDE:
            stored: Any = await Secret.aload(INSIDE)
            return str(stored.value.get_secret_value())
        secret: Any = await blocks.VaultSecret.aload(OUTSIDE)
        return str((await secret.aread_secret()).decode())

    def is_alive(self, secret: str) -> bool:
        """Return whether OpenRouter accepts a key."""
        found = self.account.by_secret.get(secret)
        return found is not None and found.hash in self.account.keys

    def follow(self, block: pages.Block, **env: str) -> None:
        """Run commands of the page in the folder of the database file."""
        pages.follow([block], self.stack.database.parent, {}, {**self.stack.env, **env})


@contextmanager
def placed(stack: Stack) -> Iterator[Place]:
    """Yield a running server with its services."""
    account, store = OpenRouterSandbox(), VaultSandbox()
    with (
        running(openrouter.create_app(account)) as openrouter_url,
        running(vault.create_app(store)) as vault_url,
        stack.as_client(),
    ):
        yield Place(stack, openrouter_url, vault_url, account)


async def back_up_and_restore(place: Place, back_up: Callable[[], None], restore: Callable[[], None]) -> None:
    """Follow the page: back up, rotate, restore, audit, and run the rotation that the audit names."""
    await place.fill_in()
    place.stack.cli("work-pool", "create", "key-rotation", "--type", "process")
    for name in (OUTSIDE, INSIDE):
        await deploy(place.rotation(name))
    await deploy_retirements()
    await place.rotate(OUTSIDE, INSIDE)
    back_up()
    await place.rotate(OUTSIDE, INSIDE)
    newer = await place.held(OUTSIDE)

    restore()

    found, repaired = await place.audit(repair=False), await place.audit(repair=True)
    ledger = await ledger_of(OUTSIDE)
    assert "Action required: " in found
    assert "does not exist at OpenRouter any more. Run the rotation at once." in repaired
    assert not place.is_alive(await place.held(INSIDE))
    assert await place.held(OUTSIDE) == newer
    assert ledger.current is not None
    assert ledger.current.hash == place.account.by_secret[newer].hash
    assert len(ledger.superseded) == 1
    await place.rotate(INSIDE)
    assert place.is_alive(await place.held(INSIDE))
    recorded = ledger.hashes() | (await ledger_of(INSIDE)).hashes()
    assert set(place.account.keys) == recorded
    assert "No notices." in await place.audit(repair=True)


async def test_the_embedded_database_restored(migrated: Callable[[Stack], Stack], tmp_path: Path) -> None:
    """The file is restored while the server is stopped; afterwards the encryption key is lost, then everything."""
    with migrated(Stack()) as stack, placed(stack) as place:

        def restore() -> None:
            assert stack.server is not None
            stack.server.stop()
            place.follow(RESTORE)
            stack.restart_server()

        await back_up_and_restore(place, lambda: place.follow(BACK_UP), restore)
        place.follow(SHOW_ID)
        await encryption_key_lost(place)
        await everything_lost(place)


async def encryption_key_lost(place: Place) -> None:
    """Unreadable blocks are created again by the same names, work with the same ledgers, and all keys are recorded."""
    assert place.stack.server is not None
    place.stack.server.stop()
    (place.stack.home / "encryption-key").write_bytes(Fernet.generate_key())
    place.follow(DROP_BLOCKS)
    place.stack.restart_server()
    await place.fill_in()

    await place.rotate(OUTSIDE, INSIDE)

    assert place.is_alive(await place.held(OUTSIDE))
    assert place.is_alive(await place.held(INSIDE))
    recorded = (await ledger_of(OUTSIDE)).hashes() | (await ledger_of(INSIDE)).hashes()
    assert set(place.account.keys) == recorded


async def everything_lost(place: Place) -> None:
    """Without ledgers, runs and id, the audit says whose keys exist; with the id put back, it recovers them."""
    former = str(await Variable.aget("key-rotation_installation"))
    async with get_client() as client:
        for variable in await client.read_variables():
            await client.delete_variable_by_name(variable.name)
        for run in await client.read_flow_runs():
            await client.delete_flow_run(run.id)
    found = await place.audit(repair=False)

    place.follow(SET_ID, INSTALLATION=former)
    await place.audit(repair=True)

    assert f"in the installation {former}; this one is " in found
    assert (await ledger_of(INSIDE)).current is not None
    await place.rotate(OUTSIDE, INSIDE)
    recorded = (await ledger_of(OUTSIDE)).hashes() | (await ledger_of(INSIDE)).hashes()
    assert set(place.account.keys) == recorded


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    with TemporaryDirectory(dir=DIRECTORY) as folder, running_postgres(Path(folder)) as address:
        yield address


@needs_postgresql
async def test_postgresql_restored(postgres: str) -> None:
    """A dump is restored into an empty database, also after the migration of a newer version."""
    admin = f"postgresql://{postgres}"
    database = f"{admin.rpartition('/')[0]}/prefect"
    subprocess.run([f"{PROGRAMS}/createdb", f"--maintenance-db={admin}", "prefect"], check=True)
    with Stack(settings_of(database.partition("://")[2])) as stack, placed(stack) as place:
        env = {"DATABASE": database, "ADMIN": admin}

        def restore() -> None:
            assert stack.server is not None
            stack.server.stop()
            ask(database, "CREATE TABLE newer (run uuid REFERENCES flow_run)")
            place.follow(PG_RESTORE, **env)
            assert ask(database, "SELECT count(*) FROM pg_tables WHERE tablename = 'newer'") == "0"
            stack.restart_server()

        await back_up_and_restore(place, lambda: place.follow(PG_DUMP, **env), restore)


def ask(database: str, statement: str) -> str:
    """Return what PostgreSQL answers to a statement."""
    command = [f"{PROGRAMS}/psql", "--no-align", "--tuples-only", f"--command={statement}", database]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
