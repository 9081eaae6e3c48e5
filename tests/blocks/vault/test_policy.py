"""The policies in docs/reference/vault-policy.md suffice for their purpose, and allow nothing else."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.errors import ForbiddenError
from blocks.vault.auth import AppRoleAuth
from tests.blocks.vault.vaults import TestVault, at_once

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "vault-policy.md").read_text()
ROTATION, CONSUMER = re.findall(r"```hcl[^\n]*\n(.*?)```", PAGE, re.DOTALL)
RULE = re.compile(r'path "([^"]+)" \{\s*capabilities = \[([^\]]*)\]\s*\}')
PATH = "apps/checkout"
LABELS = {"key_rotation": "checkout"}
KEY = SecretStr("sk-or-v1-the-new-key")


def rules(policy: str) -> dict[str, set[str]]:
    """Return the rules of a policy in the stand-in's form."""
    return {path: set(re.findall(r"\w+", granted)) for path, granted in RULE.findall(policy)}


def secret(vault: TestVault, policy: str, path: str = PATH) -> VaultSecret:
    """Return a secret whose login has a policy."""
    role_id, secret_id = vault.make_role(rules(policy)) if vault.state else _real_role(vault, policy)
    auth = AppRoleAuth(role_id=role_id, secret_id=secret_id)
    credentials = VaultCredentials(url=vault.url, auth=auth)
    credentials._sleep = at_once
    return VaultSecret(credentials=credentials, path=path)


def _real_role(vault: TestVault, policy: str) -> tuple[str, str]:
    """Create a role with the policy exactly as the page shows it, and return its credentials."""
    approle = vault.root.auth.approle
    vault.root.sys.create_or_update_policy("documented", policy)
    approle.create_or_update_approle("documented", token_policies=["documented"])
    role_id = approle.read_role_id("documented")["data"]["role_id"]
    return role_id, approle.generate_secret_id("documented")["data"]["secret_id"]


def _request(client: Any, *, method: str, url: str) -> Any:
    return client.adapter.request(method, url)


@pytest.fixture(autouse=True)
def stored(vault: TestVault) -> None:
    """Store something where the policies allow access, and where they do not."""
    vault.root.secrets.kv.v2.delete_metadata_and_all_versions(PATH)
    for path in (PATH, f"{PATH}/below", "apps/other"):
        vault.root.secrets.kv.v2.create_or_update_secret(path, {"value": "old", "beside": "kept"})


async def test_a_rotation_can_do_all_that_it_does(vault: TestVault) -> None:
    """The documented policy allows check, read, write, label, read back, fence and a search in older versions."""
    block = secret(vault, ROTATION)

    assert "can be read and written" in await block.check()
    await block.write_content(KEY, await block.read_content(), LABELS)
    fenced = await block.fence(await block.read_content())

    stored = vault.root.secrets.kv.v2.read_secret_metadata(PATH)["data"]
    assert (fenced.value, fenced.version) == (KEY, 3)
    assert stored["custom_metadata"] == LABELS
    assert await block.read_older(lambda value: value != KEY) == SecretStr("old")
    await block.aclose()


async def test_a_rotation_can_begin_with_nothing(vault: TestVault) -> None:
    """The first key at a path needs no further permission."""
    vault.root.secrets.kv.v2.delete_metadata_and_all_versions(PATH)
    block = secret(vault, ROTATION)

    await block.write_content(KEY, await block.read_content(), LABELS)

    assert (await block.read_content()).value == KEY
    await block.aclose()


@pytest.mark.parametrize("path", [f"{PATH}/below", "apps/other", "apps"])
@pytest.mark.parametrize("policy", [ROTATION, CONSUMER], ids=["rotation", "consumer"])
async def test_another_path_is_refused(vault: TestVault, policy: str, path: str) -> None:
    """Neither neighbouring paths nor those above or below can be read."""
    block = secret(vault, policy, path)

    with pytest.raises(ForbiddenError, match="does not permit reading"):
        await block.read_content()
    await block.aclose()


async def test_a_consumer_reads_and_cannot_write(vault: TestVault) -> None:
    """A consumer can read the key, but not replace it."""
    block = secret(vault, CONSUMER)
    held = await block.read_content()

    with pytest.raises(ForbiddenError, match="does not permit writing"):
        await block.write_content(KEY, held, LABELS)
    with pytest.raises(ForbiddenError, match="does not grant"):
        await block.check()

    assert held.value == SecretStr("old")
    await block.aclose()


@pytest.mark.parametrize("method", ["delete", "list"])
async def test_a_rotation_can_neither_delete_nor_list(vault: TestVault, method: str) -> None:
    """Whoever steals the rotation's login can neither destroy older versions nor list secrets."""
    block = secret(vault, ROTATION)
    connection = block.credentials.connection()

    for kind in ("data", "metadata"):
        url = f"/v1/secret/{kind}/{PATH}"
        with pytest.raises(ForbiddenError):
            await connection.call("trying", partial(_request, method=method, url=url))
    await block.aclose()
