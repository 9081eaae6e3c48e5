"""The how-to pages about storing and reading keys, followed exactly as they are written."""

from __future__ import annotations

import os
import runpy
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

import blocks
from blocks.vault.auth import TokenAuth
from flows import rotate
from sandbox import infisical
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.model.rotation import Rotation
from tests.blocks.vault import vaults
from tests.docs import pages
from tests.e2e.conftest import Services, with_pages
from tests.e2e.following import follow, rotated

pytestmark = with_pages
REGION = "eu-central-1"
AWS_SECRET = "checkout/openrouter-api-key"
APP = "apps/checkout"
needs_vault = pytest.mark.skipif(vaults.BINARY is None, reason="neither vault nor bao is on PATH")


async def rotate_to(services: Services, destination: str) -> str:
    """Rotate twice to a destination that a page has created, and return the only live key."""
    rotation = services.rotation(destinations=[destination])
    await rotated(services, rotation)
    return await rotated(services, rotation)


async def test_infisical(services: Services, tmp_path: Path) -> None:
    """A rotation publishes to the block that the page has created."""
    typed = f"{infisical.CLIENT_ID}\n{infisical.CLIENT_SECRET}\n{infisical.PROJECT_ID}\n"
    follow("how-to/infisical.md", services, tmp_path, typed)

    key = await rotate_to(services, "infisical-secret/checkout")

    secret: Any = await blocks.InfisicalSecret.aload("checkout")
    assert await secret.aread_secret() == key.encode()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A local stand-in of AWS, and the environment with which boto3 finds it."""
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


async def test_aws_secrets_manager(services: Services, tmp_path: Path, aws: dict[str, str]) -> None:
    """A rotation publishes to prefect-aws's own block, and the page's consumer reads the live key."""
    page = pages.read("how-to/aws-secrets-manager.md")
    *make, read, _promise = [block for block in page if block.language in {"sh", "python", "text"}]
    secrets: Any = boto3.client("secretsmanager", region_name=REGION)
    secrets.create_secret(Name=AWS_SECRET, SecretString="not-yet-rotated")
    pages.follow(make, tmp_path, {}, services.stack.env)

    key = await rotate_to(services, "aws-secret/checkout")

    [(promised, printed)] = pages.follow([*make, read, _promise], tmp_path, {}, services.stack.env)
    stored = secrets.get_secret_value(SecretId=AWS_SECRET)
    former = secrets.get_secret_value(SecretId=AWS_SECRET, VersionStage="AWSPREVIOUS")
    assert stored["SecretBinary"] == key.encode()
    assert former["SecretBinary"].startswith(b"sk-or-v1-")
    assert pages.prints(promised, printed)


async def test_a_secret_that_aws_does_not_have_makes_nothing(services: Services, aws: dict[str, str]) -> None:
    """Without the secret in AWS, the run fails before it creates a key."""
    aws_secret: Any = pytest.importorskip("prefect_aws")
    credentials = aws_secret.AwsCredentials(region_name=REGION)
    await aws_secret.AwsSecret(aws_credentials=credentials, secret_name="absent").asave("absent", overwrite=True)

    state = await rotate(services.rotation(destinations=["aws-secret/absent"]), return_state=True)

    assert "aws-secret/absent could not be read (ResourceNotFoundException)" in str(state.message)
    assert services.openrouter.created == []


@pytest.fixture
async def to_vault(services: Services) -> Rotation:
    """Return a rotation to the block of the pages, with a consumer that may read it."""
    services.vault.allow_login("approle", "consumer", "its-secret", {f"secret/data/{APP}": {"read"}})
    credentials = blocks.VaultCredentials(url=services.vault_url, auth=TokenAuth(token=ROOT_TOKEN))
    await blocks.VaultSecret(credentials=credentials, path=APP).asave("checkout", overwrite=True)
    return services.rotation(destinations=["vault-secret/checkout"])


async def test_reading_a_secret_in_a_flow(services: Services, tmp_path: Path) -> None:
    """The synchronous and asynchronous programs read secrets in Vault and Infisical without any rotation."""
    for slug in ("vault-secret", "infisical-secret"):
        block = services.make(slug)
        await block.asave("app", overwrite=True)
        await block.awrite_secret(b"correct horse")

    follow("how-to/read-a-secret-in-a-flow.md", services, tmp_path)


async def test_reading_the_key_from_an_application(
    services: Services, tmp_path: Path, to_vault: Rotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program reads the key, and reads it again after it was revoked."""
    login = {"VAULT_ADDR": services.vault_url, "VAULT_ROLE_ID": "consumer", "VAULT_SECRET_ID": "its-secret"}
    await rotated(services, to_vault)
    follow("how-to/read-the-key.md", services, tmp_path, "consumer\nits-secret\n")
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    application = runpy.run_path(str(tmp_path / "application.py"))["openrouter"]
    before = application.get("key")

    current = await rotated(services, to_vault)

    after = application.get("key")
    assert [before.status_code, after.status_code] == [200, 200]
    assert after.request.headers["Authorization"] == f"Bearer {current}"
    assert after.request.headers["Authorization"] != before.request.headers["Authorization"]


@pytest.fixture
def real_vault(tmp_path: Path) -> Iterator[tuple[vaults.TestVault, dict[str, str]]]:
    """A real Vault or OpenBao, and the environment with which the command `vault` finds it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vault").symlink_to(str(vaults.BINARY))
    with vaults.real(tmp_path) as running:
        where = {"VAULT_ADDR": running.url, "VAULT_TOKEN": ROOT_TOKEN}
        also = {name.replace("VAULT", "BAO"): value for name, value in where.items()}
        yield running, {**where, **also, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@needs_vault
async def test_vault(services: Services, tmp_path: Path, real_vault: tuple[vaults.TestVault, dict[str, str]]) -> None:
    """A rotation publishes to the block that the page has created, with the page's policy and login."""
    running, env = real_vault
    running.root.sys.disable_auth_method("approle")
    for name, policy in pages.files("reference/vault-policy.md").items():
        (tmp_path / name).write_text(policy)
    follow("how-to/vault.md", services, tmp_path, **env)

    key = await rotate_to(services, "vault-secret/checkout")

    stored = running.root.secrets.kv.v2.read_secret_version(APP, raise_on_deleted_version=True)["data"]
    assert stored["data"] == {"value": key}
    assert stored["metadata"]["custom_metadata"]["key_rotation"].startswith("rotation-")


@needs_vault
def test_vaults_kubernetes_login(
    services: Services, tmp_path: Path, real_vault: tuple[vaults.TestVault, dict[str, str]]
) -> None:
    """Vault accepts the page's role, which gives the policy page's policy to the worker's service account."""
    running, env = real_vault
    for name, policy in pages.files("reference/vault-policy.md").items():
        (tmp_path / name).write_text(policy)

    follow("how-to/kubernetes.md", services, tmp_path, **env)

    role = running.root.read("auth/kubernetes/role/rotation-checkout")["data"]
    assert role["bound_service_account_names"] == ["key-rotation"]
    assert role["token_policies"] == ["rotation-checkout"]


@needs_vault
def test_vault_agent(tmp_path: Path, real_vault: tuple[vaults.TestVault, dict[str, str]]) -> None:
    """The agent writes the key to the file, and writes it again after a change."""
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
