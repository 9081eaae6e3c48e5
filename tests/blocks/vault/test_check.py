"""A check says whether a secret in Vault can be read and written, and otherwise what is missing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from blocks import VaultCredentials, VaultSecret
from blocks.errors import ForbiddenError, NotFoundError, UnauthorizedError, UnavailableError, UnreachableError
from blocks.vault.auth import AppRoleAuth, TokenAuth
from sandbox.stack import free_port
from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.conftest import block, paths
from tests.blocks.vault.vaults import READ_WRITE, TestVault, at_once


@pytest.mark.parametrize(
    ("granted", "stored", "can_write"),
    [
        ({"read", "create", "update"}, False, True),
        ({"read", "create", "update"}, True, True),
        ({"read", "update"}, True, True),
        ({"read", "update"}, False, False),
        ({"read", "create"}, False, False),
        ({"read"}, True, False),
        ({"deny"}, True, False),
    ],
)
async def test_a_write_is_foreseen(vault: TestVault, granted: set[str], stored: bool, can_write: bool) -> None:
    """The policy's capabilities show whether a write would be allowed, and the check writes nothing."""
    path = next(paths)
    if stored:
        vault.root.secrets.kv.v2.create_or_update_secret(path, {"value": "old"})
    role_id, secret_id = vault.make_role({f"secret/data/{path}": granted})
    limited = block(vault, AppRoleAuth(role_id=role_id, secret_id=secret_id), path=path)

    with nullcontext() if can_write else pytest.raises(ForbiddenError):
        assert "can be read and written" in await limited.check()

    assert (await block(vault, path=path).read_content()).version == (1 if stored else 0)
    await limited.aclose()


async def test_a_root_token_can_write(secret: VaultSecret) -> None:
    """A root token has the single capability `root`, which includes everything."""
    assert "can be read and written" in await secret.check()


async def test_a_token_that_may_not_ask_leaves_it_open(vault: TestVault) -> None:
    """Without permission to read its capabilities, the answer is unknown."""
    path = next(paths)
    role_id, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE, "sys/capabilities-self": {"deny"}})
    limited = block(vault, AppRoleAuth(role_id=role_id, secret_id=secret_id), path=path)

    assert "whether it can be written is unknown" in await limited.check()
    await limited.aclose()


async def test_check_says_that_it_works(vault: TestVault) -> None:
    """For a usable secret, the check returns one sentence."""
    assert "can be read and written" in await block(vault).check()


async def test_check_names_a_wrong_token(vault: TestVault) -> None:
    """An unknown token is reported as wrong or expired."""
    with pytest.raises(UnauthorizedError, match="does not accept the token"):
        await block(vault, TokenAuth(token="hvs.wrong")).check()


async def test_check_names_a_refused_login(vault: TestVault) -> None:
    """A wrong AppRole is reported as a refused login, without quoting it."""
    with pytest.raises(UnauthorizedError, match="refused the login at auth/approle") as refused:
        await block(vault, AppRoleAuth(role_id="nobody", secret_id="guess-of-a-secret")).check()

    assert "guess" not in str(refused.value)


async def test_check_names_the_missing_permission(vault: TestVault) -> None:
    """For a role that may only read, the message says what it lacks, and where."""
    path = next(paths)
    role, secret_id = vault.make_role({f"secret/data/{path}": {"read"}})

    with pytest.raises(ForbiddenError, match=f"does not grant create, update on secret/data/{path}"):
        await block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path).check()


async def test_check_names_an_unknown_mount(vault: TestVault) -> None:
    """A mount that does not exist is named."""
    with pytest.raises(NotFoundError, match="no KV version 2 engine at the mount nowhere"):
        await block(vault, mount="nowhere").check()


async def test_check_says_that_vault_is_sealed(sealed_vault: str) -> None:
    """A sealed Vault is reported as such, and nothing can have taken effect."""
    credentials = VaultCredentials(url=sealed_vault, auth=TokenAuth(token=ROOT_TOKEN))

    with pytest.raises(UnavailableError, match="is sealed") as failed:
        await VaultSecret(credentials=credentials, path="x").check()

    assert failed.value.outcome_unknown is False


async def test_check_says_that_the_host_is_unreachable() -> None:
    """An address without a listener is reported as unreachable, and nothing can have taken effect."""
    credentials = VaultCredentials(url=f"http://127.0.0.1:{free_port()}", auth=TokenAuth(token=ROOT_TOKEN))
    credentials._sleep = at_once

    with pytest.raises(UnreachableError, match="no connection could be made") as failed:
        await VaultSecret(credentials=credentials, path="x").check()

    assert failed.value.outcome_unknown is False
