"""Any input for a secret's location is either used exactly as entered, or refused without being quoted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from pydantic import SecretStr

from blocks import InfisicalCredentials, InfisicalSecret, VaultCredentials, VaultSecret
from blocks.vault.auth import TokenAuth
from sandbox import infisical, vault
from sandbox.server import running
from sandbox.vault_engines import KvVersion2
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tests.hostile.liar import KEY
from tests.hostile.typed import CANARY, make, typed

# --- Vault ---


@pytest.fixture(scope="module")
def vault_server() -> Iterator[tuple[str, VaultSandbox]]:
    """The Vault stand-in on a real socket, because hvac and requests interpret paths, too."""
    sandbox = VaultSandbox()
    with running(vault.create_app(sandbox)) as url:
        yield url, sandbox


@given(mount=typed, path=typed, field=typed)
@settings(max_examples=150, deadline=None)
@example(mount="secret", path="%2e%2e/%2e%2e/sys", field="value")
@example(mount="a?b", path="a#b;c=d&e", field="{{ key }}")
@example(mount="x" * 512, path="é" * 512, field="x" * 256)
async def test_a_secret_is_written_where_the_block_says_and_nowhere_else(
    vault_server: tuple[str, VaultSandbox], mount: str, path: str, field: str
) -> None:
    """Vault has the key in exactly this field, path and mount, or nothing was sent."""
    url, sandbox = vault_server
    credentials = VaultCredentials(url=url, auth=TokenAuth(token=ROOT_TOKEN))
    block = make(VaultSecret, credentials=credentials, mount=mount, path=path, field=field)
    if block is None:
        return
    sandbox.namespaces[""].clear()
    sandbox.mount(block.mount)

    await block.write_content(SecretStr(KEY), await block.read_content(), {"key_rotation": "checkout"})
    read = await block.read_secret()
    await block.aclose()

    engine = sandbox.namespaces[""][block.mount]
    assert isinstance(engine, KvVersion2)
    assert list(engine.records) == [block.path]
    assert engine.read(block.path)["data"] == {block.field: KEY}
    assert read == KEY.encode()
    assert mount.strip().strip("/") == block.mount
    assert path.strip().strip("/") == block.path


@pytest.mark.parametrize("field", ["mount", "path", "field"])
@given(value=typed)
@settings(deadline=None)
def test_a_place_in_vault_that_is_refused_is_not_repeated(field: str, value: str) -> None:
    """The message names the field, and does not contain the input."""
    credentials = VaultCredentials(url="https://vault.example", auth=TokenAuth(token="t"))

    made = make(VaultSecret, **{"credentials": credentials, "path": "app", field: value + CANARY})

    assert made is None or getattr(made, field).endswith(CANARY)


# --- Infisical ---


@pytest.fixture(scope="module")
def infisical_server() -> Iterator[tuple[str, infisical.InfisicalSandbox]]:
    """The Infisical stand-in."""
    app = infisical.create_app()
    with running(app) as url:
        yield url, app.state.sandbox


@given(project=typed, environment=typed, path=typed, name=typed)
@settings(max_examples=150, deadline=None)
@example(project="p", environment="prod", path="/%2e%2e/?a=b#c", name="%2e%2e?a=b#c&d")
@example(project="a&b=c", environment="e+f g", path="/é/．．", name="．．")  # noqa: RUF001 - full-width dots
async def test_infisical_has_the_secret_where_the_block_says_and_nowhere_else(
    infisical_server: tuple[str, infisical.InfisicalSandbox], project: str, environment: str, path: str, name: str
) -> None:
    """Project, environment, folder and name arrive exactly as they are in the block, or nothing was sent."""
    url, sandbox = infisical_server
    credentials = InfisicalCredentials(host=url, client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET)
    block = make(
        InfisicalSecret, credentials=credentials, project_id=project, environment=environment, path=path, name=name
    )
    if block is None:
        return
    sandbox.folders.clear()
    sandbox.add_folder(block.environment, block.path, project=block.project_id)

    await block.write_content(SecretStr(KEY), await block.read_content(), {})
    read = await block.read_secret()
    await block.aclose()

    [(place, folder)] = sandbox.folders.items()
    assert place == (block.project_id, block.environment, block.path)
    assert {stored.name: stored.values for stored in folder.values()} == {block.name: [KEY]}
    assert (block.project_id, block.environment, block.name) == (project, environment, name)
    assert read == KEY.encode()


@pytest.mark.parametrize("field", ["project_id", "environment", "path", "name"])
@given(value=typed)
@settings(deadline=None)
def test_a_place_in_infisical_that_is_refused_is_not_repeated(field: str, value: str) -> None:
    """The message names the field, and does not contain the input."""
    credentials = InfisicalCredentials(host="https://infisical.example", client_id="c", client_secret="s")
    place = {"project_id": "p", "environment": "prod", "name": "KEY"}

    made = make(InfisicalSecret, **{"credentials": credentials, **place, field: value + CANARY})

    assert made is None or getattr(made, field).endswith(CANARY)
