"""The how-to pages, followed as they stand, and what a rotation does with what they made."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import boto3
import pytest
from moto.server import ThreadedMotoServer
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.variables import Variable

import blocks
from blocks import OpenRouterCredentials
from blocks.vault.auth import TokenAuth
from flows import add_rotation, check_connections, rotate
from flows.deployments import read_deployment, save_deployment
from sandbox import infisical
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.setup import CONNECTION, SECRET
from sandbox.stack import CHECKOUT
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.model.rotation import Rotation
from tasks.world.inventory import read_deployments
from tasks.world.management_keys import PREFIX
from tests.blocks.vault import vaults
from tests.by_hand import delete_ledger, ledger_of, ledger_value
from tests.docs import pages
from tests.docs.worker import at_work
from tests.e2e.conftest import World, numbers, with_pages
from tests.e2e.driver import deploy

EVERY_MONTH = RRuleSchedule(rrule="DTSTART:20261201T033000\nRRULE:FREQ=DAILY;INTERVAL=30", timezone="Europe/Berlin")
REGION = "eu-central-1"
AWS_SECRET = "checkout/openrouter-api-key"
APP = "apps/checkout"
NEW_MANAGEMENT_KEY = f"sk-or-v1-{'7' * 64}"
pytestmark = with_pages
needs_vault = pytest.mark.skipif(vaults.BINARY is None, reason="neither vault nor bao is on PATH")


@pytest.fixture
def connection() -> str:
    """The connection that the pages name."""
    return CONNECTION


def follow(page: str, world: World, directory: Path, typed: str = "", **env: str) -> None:
    """Follow a page against the stand-ins; each command succeeds and prints what the page promises."""
    here = {
        "https://openrouter.ai/api/v1": world.openrouter_url,
        "https://app.infisical.com": world.infisical_url,
        "https://vault.example.com:8200": world.vault_url,
        "(management_key=management_key)": f'(management_key=management_key, base_url="{world.openrouter_url}")',
    }
    promises = pages.follow(pages.read(page), directory, here, {**world.stack.env, **env}, typed)
    for promised, printed in promises:
        assert pages.prints(promised, printed), f"promised:\n{promised}\nprinted:\n{printed}"


async def forget(rotation: str) -> None:
    """Take away the ledger of a rotation that the pages name, which another test may have left."""
    with suppress(ValueError):
        await delete_ledger(rotation)


async def rotated(world: World, rotation: Rotation) -> str:
    """Run a rotation without overlap, and give the one key that is alive."""
    state = await rotate(rotation, return_state=True)
    assert state.is_completed(), state.message
    [live] = world.openrouter.live_keys()
    return live.secret


async def rotate_to(world: World, destination: str) -> str:
    """Rotate twice to a destination that a page has made, and give the one key that is alive."""
    rotation = world.rotation(destinations=[destination])
    await rotated(world, rotation)
    return await rotated(world, rotation)


async def test_openrouter(world: World, tmp_path: Path) -> None:
    """The page leads from an empty server to a first key, with the automation and the deployments."""
    shutil.copy(CHECKOUT / "prefect.yaml", tmp_path)
    shutil.copytree(CHECKOUT / "automations", tmp_path / "automations")
    await OpenRouterCredentials.adelete(CONNECTION)
    await Secret.adelete(SECRET)
    await forget("example")

    with at_work(world.stack):
        follow("how-to/openrouter.md", world, tmp_path, typed=DEFAULT_MANAGEMENT_KEY + "\n")

    [live] = world.openrouter.live_keys()
    async with get_client() as client:
        assert await client.read_automations_by_name("key-rotation-crashed-runs")
        assert await client.read_deployment_by_name("rotate/example")
        known = [await client.read_block_type_by_slug(block.get_block_type_slug()) for block in blocks.BLOCKS]
    assert all(kind.logo_url and kind.description and kind.code_example for kind in known)
    stored: Any = await Secret.aload(SECRET)
    assert stored.get() == live.secret


async def test_adopting_a_key(world: World, tmp_path: Path) -> None:
    """The page leads to a first rotation that supersedes the key which applications had before."""
    former = world.openrouter.add_key(world.openrouter.accounts[0], {"name": "made by hand"})
    [destination] = (await world.prepare(world.rotation())).destinations
    await Secret(value=former.secret).asave(destination.partition("/")[2], overwrite=True)
    connection = await OpenRouterCredentials.aload(CONNECTION)
    page = pages.read("how-to/adopt.md")
    await forget("checkout")
    form = {"key_name": "checkout", "other_destinations": [destination], "rotation_name": "checkout"}
    added = await add_rotation(connection, **form, make_key_now=False, return_state=True)

    with at_work(world.stack):
        promises = pages.follow(page, tmp_path, {}, world.stack.env, former.hash + "\n")

    ledger = await ledger_of("checkout")
    assert added.is_completed(), added.message
    assert all(pages.prints(promised, printed) for promised, printed in promises)
    assert [key.hash for key in ledger.superseded] == [former.hash]


async def test_exchanging_a_management_key(world: World, tmp_path: Path) -> None:
    """The page "exchange-management-key" puts another key of the account into the block, and its age starts anew."""
    for deployment in await read_deployments():
        async with get_client() as client:
            await client.delete_deployment(UUID(deployment["id"]))
    await world.connect(world.openrouter_url)
    rotation = await world.prepare(world.rotation())
    await save_deployment(None, rotation, EVERY_MONTH, active=False)
    await check_connections(return_state=True)
    before: Any = await Variable.aget(f"{PREFIX}{CONNECTION}")
    world.openrouter.accounts[0].management_keys.add(NEW_MANAGEMENT_KEY)
    world.stack.cli("deploy", "--no-prompt", "--name", "check-connections")

    with at_work(world.stack):
        follow("how-to/exchange-management-key.md", world, tmp_path, typed=NEW_MANAGEMENT_KEY + "\n")

    after: Any = await Variable.aget(f"{PREFIX}{CONNECTION}")
    connection: Any = await OpenRouterCredentials.aload(CONNECTION)
    assert connection.management_key.get_secret_value() == NEW_MANAGEMENT_KEY
    assert after["fingerprint"] != before["fingerprint"]
    assert after["since"] > before["since"]


async def test_what_is_done_with_a_rotation(world: World, tmp_path: Path) -> None:
    """Every command of the pages about a rotation that is deployed works on one: the runs that it starts complete."""
    world.connection = f"openrouter-of-example-{next(numbers)}"  # an audit finds nothing of other pages
    await world.connect(world.openrouter_url)
    await forget("example")
    deployed = ("apply-settings", "audit", "remove-rotation", "restore-key", "retire")
    world.stack.cli("deploy", "--no-prompt", *(word for name in deployed for word in ("--name", name)))
    wanted = world.rotation(name="example", destinations=["vault-secret/example"], overlap=timedelta(days=1))
    rotation = await world.prepare(wanted)
    await save_deployment(await read_deployment("example"), rotation, EVERY_MONTH, active=False)
    for _ in range(2):
        assert (await rotate(rotation, return_state=True)).is_completed()
    names = ("audit", "change-rotation", "restore-key", "rotate", "emergency", "remove-rotation")
    page = [block for name in names for block in pages.read(f"how-to/{name}.md")]
    here = {
        "connection=openrouter": f"connection={rotation.connection}",
        "rotate/checkout": "rotate/example",
        "rotation=checkout": "rotation=example",
    }

    with at_work(world.stack):
        promises = pages.follow(page, tmp_path, here, world.stack.env)

    assert [printed for promised, printed in promises if not pages.prints(promised, printed)] == []
    assert promises
    assert await ledger_value("example") is None


async def test_writing_a_key_off(world: World, tmp_path: Path) -> None:
    """Given a superseded key whose connection was deleted, the command of the page takes it out of the ledger."""
    await forget("example")
    world.stack.cli("deploy", "--no-prompt", "--name", "write-off-key")
    former = f"openrouter-of-a-closed-account-{next(numbers)}"
    wanted = {"name": "example", "destinations": ["vault-secret/example"], "overlap": timedelta(days=1)}
    rotations = [world.rotation(**wanted, connection=former)]
    rotations += [rotations[0].model_copy(update={"connection": "openrouter"})]
    for rotation in rotations:
        world.connection = rotation.connection
        await world.connect(world.openrouter_url)
        assert (await rotate(await world.prepare(rotation), return_state=True)).is_completed()
    await OpenRouterCredentials.adelete(former)
    superseded = (await ledger_of("example")).superseded
    here = {"sk-or-v1-0e6...1c96": superseded[0].label}

    with at_work(world.stack):
        pages.follow(pages.read("how-to/write-off.md"), tmp_path, here, world.stack.env)

    ledger = await ledger_of("example")
    assert ledger.superseded == ()
    assert [entry.hash for entry in ledger.written_off] == [superseded[0].hash]


@pytest.mark.parametrize("page", ["reference/blocks.md", "reference/settings.md"])
async def test_the_commands_of_the_reference(page: str, world: World, tmp_path: Path) -> None:
    """Each command works as it stands."""
    follow(page, world, tmp_path)


async def test_adding_a_rotation(world: World, tmp_path: Path) -> None:
    """What the page deploys is there."""
    shutil.copy(CHECKOUT / "prefect.yaml", tmp_path)

    follow("how-to/add-rotation.md", world, tmp_path)

    async with get_client() as client:
        assert await client.read_deployment_by_name("retire/retire")


async def test_what_an_upgrade_makes_again(world: World, tmp_path: Path) -> None:
    """Blocks, deployments and automations are made as how-to/upgrade.md says, whether they exist or not."""
    shutil.copy(CHECKOUT / "prefect.yaml", tmp_path)
    shutil.copytree(CHECKOUT / "automations", tmp_path / "automations")

    follow("how-to/upgrade.md", world, tmp_path)

    async with get_client() as client:
        assert await client.read_deployment_by_name("retire/retire")


async def test_monitoring(world: World, tmp_path: Path) -> None:
    """The file has the fields that how-to/monitor.md names, for a rotation that has a key."""
    rotation = world.rotation()
    await deploy(await world.prepare(rotation))
    await rotated(world, rotation)

    follow("how-to/monitor.md", world, tmp_path)

    [mine] = [
        each for each in json.loads((tmp_path / "rotations.json").read_text()) if each["rotation"] == rotation.name
    ]
    assert {"health", "needs", "current", "superseded", "next_run", "last_run"} <= set(mine)
    assert mine["current"]["since"]


async def test_infisical(world: World, tmp_path: Path) -> None:
    """A rotation publishes to the block that the page has made."""
    typed = f"{infisical.CLIENT_ID}\n{infisical.CLIENT_SECRET}\n{infisical.PROJECT_ID}\n"
    follow("how-to/infisical.md", world, tmp_path, typed)

    key = await rotate_to(world, "infisical-secret/checkout")

    secret: Any = await blocks.InfisicalSecret.aload("checkout")
    assert await secret.aread_secret() == key.encode()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A local stand-in of AWS, and the environment by which boto3 finds it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    yield env
    server.stop()


async def test_aws_secrets_manager(world: World, tmp_path: Path, aws: dict[str, str]) -> None:
    """A rotation publishes to prefect-aws's own block, and the page's consumer reads the live key."""
    page = pages.read("how-to/aws-secrets-manager.md")
    *make, read, _promise = [block for block in page if block.language in {"sh", "python", "text"}]
    secrets: Any = boto3.client("secretsmanager", region_name=REGION)
    secrets.create_secret(Name=AWS_SECRET, SecretString="not-yet-rotated")
    pages.follow(make, tmp_path, {}, world.stack.env)

    key = await rotate_to(world, "aws-secret/checkout")

    [(promised, printed)] = pages.follow([*make, read, _promise], tmp_path, {}, world.stack.env)
    stored = secrets.get_secret_value(SecretId=AWS_SECRET)
    former = secrets.get_secret_value(SecretId=AWS_SECRET, VersionStage="AWSPREVIOUS")
    assert stored["SecretBinary"] == key.encode()
    assert former["SecretBinary"].startswith(b"sk-or-v1-")
    assert pages.prints(promised, printed)


async def test_a_secret_that_aws_does_not_have_makes_nothing(world: World, aws: dict[str, str]) -> None:
    """Where the secret was not made first, the run says so before any key is created."""
    aws_secret: Any = pytest.importorskip("prefect_aws")
    credentials = aws_secret.AwsCredentials(region_name=REGION)
    await aws_secret.AwsSecret(aws_credentials=credentials, secret_name="absent").asave("absent", overwrite=True)

    state = await rotate(world.rotation(destinations=["aws-secret/absent"]), return_state=True)

    assert "aws-secret/absent could not be read (ResourceNotFoundException)" in str(state.message)
    assert world.openrouter.created == []


@pytest.fixture
async def to_vault(world: World) -> Rotation:
    """A rotation to the block of the pages, and a consumer who may read there."""
    world.vault.allow_login("approle", "consumer", "its-secret", {f"secret/data/{APP}": {"read"}})
    credentials = blocks.VaultCredentials(url=world.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    await blocks.VaultSecret(credentials=credentials, path=APP).asave("checkout", overwrite=True)
    return world.rotation(destinations=["vault-secret/checkout"])


async def test_reading_a_secret_in_a_flow(world: World, tmp_path: Path) -> None:
    """The programs, sync and async, read what somebody has stored in Vault and in Infisical; no rotation is there."""
    for slug in ("vault-secret", "infisical-secret"):
        block = world.make(slug)
        await block.asave("app", overwrite=True)
        await block.awrite_secret(b"correct horse")

    follow("how-to/read-a-secret-in-a-flow.md", world, tmp_path)


async def test_reading_the_key_from_an_application(
    world: World, tmp_path: Path, to_vault: Rotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program reads the key, and reads it anew where it was revoked behind its back."""
    login = {"VAULT_ADDR": world.vault_url, "VAULT_ROLE_ID": "consumer", "VAULT_SECRET_ID": "its-secret"}
    await rotated(world, to_vault)
    follow("how-to/read-the-key.md", world, tmp_path, "consumer\nits-secret\n")
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    application = runpy.run_path(str(tmp_path / "application.py"))["openrouter"]
    before = application.get("key")

    current = await rotated(world, to_vault)

    after = application.get("key")
    assert [before.status_code, after.status_code] == [200, 200]
    assert after.request.headers["Authorization"] == f"Bearer {current}"
    assert after.request.headers["Authorization"] != before.request.headers["Authorization"]


@pytest.fixture
def real_vault(tmp_path: Path) -> Iterator[tuple[vaults.TestVault, dict[str, str]]]:
    """A real Vault or OpenBao, and the environment by which the command `vault` finds it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vault").symlink_to(str(vaults.BINARY))
    with vaults.real(tmp_path) as running:
        where = {"VAULT_ADDR": running.url, "VAULT_TOKEN": ROOT_TOKEN}
        also = {name.replace("VAULT", "BAO"): value for name, value in where.items()}
        yield running, {**where, **also, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@needs_vault
async def test_vault(world: World, tmp_path: Path, real_vault: tuple[vaults.TestVault, dict[str, str]]) -> None:
    """A rotation publishes to the block that the page has made, with the policy and the login of the page."""
    running, env = real_vault
    running.root.sys.disable_auth_method("approle")
    for name, policy in pages.files("reference/vault-policy.md").items():
        (tmp_path / name).write_text(policy)
    follow("how-to/vault.md", world, tmp_path, **env)

    key = await rotate_to(world, "vault-secret/checkout")

    stored = running.root.secrets.kv.v2.read_secret_version(APP, raise_on_deleted_version=True)["data"]
    assert stored["data"] == {"value": key}
    assert stored["metadata"]["custom_metadata"]["key_rotation"].startswith("rotation-")


@needs_vault
def test_vaults_kubernetes_login(
    world: World, tmp_path: Path, real_vault: tuple[vaults.TestVault, dict[str, str]]
) -> None:
    """Vault takes the page's role, which gives the worker's service account the policy of the policy page."""
    running, env = real_vault
    for name, policy in pages.files("reference/vault-policy.md").items():
        (tmp_path / name).write_text(policy)

    follow("how-to/kubernetes.md", world, tmp_path, **env)

    role = running.root.read("auth/kubernetes/role/rotation-checkout")["data"]
    assert role["bound_service_account_names"] == ["key-rotation"]
    assert role["token_policies"] == ["rotation-checkout"]


@needs_vault
def test_vault_agent(tmp_path: Path, real_vault: tuple[vaults.TestVault, dict[str, str]]) -> None:
    """The agent writes the key into the file, and writes it anew when it has changed."""
    running, env = real_vault
    role_id, secret_id = running.make_role({f"secret/data/{APP}": {"read"}})
    config = pages.files("how-to/read-the-key.md")["agent.hcl"]
    config = config.replace("https://vault.example.com:8200", running.url).replace('"1m"', '"1s"')
    for name, text in {"agent.hcl": config, "role-id": role_id, "secret-id": secret_id}.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / "openrouter-api-key"
    read: list[str] = []
    command = ["vault", "agent", "-config=agent.hcl"]
    path = {"PATH": env["PATH"], "HOME": str(tmp_path)}

    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, cwd=tmp_path, env=path, stdout=log, stderr=log)
        for key in ("sk-or-v1-first", "sk-or-v1-second"):
            running.root.secrets.kv.v2.create_or_update_secret(APP, {"value": key})
            deadline = time.monotonic() + 30
            while not (file.exists() and file.read_text() == key) and time.monotonic() < deadline:
                time.sleep(0.1)
            read.append(file.read_text() if file.exists() else (tmp_path / "agent.log").read_text())
        agent.terminate()
        agent.wait(10)

    assert read == ["sk-or-v1-first", "sk-or-v1-second"]
