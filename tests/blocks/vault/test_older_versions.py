"""The versions before the current one can be searched, newest first."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from blocks import VaultSecret
from blocks.errors import ForbiddenError
from blocks.vault.auth import AppRoleAuth
from tests.blocks.vault.conftest import block, paths
from tests.blocks.vault.vaults import READ_WRITE, TestVault


async def store(secret: VaultSecret, *values: str) -> None:
    """Write several versions."""
    for value in values:
        await secret.write_content(SecretStr(value), await secret.read_content(), {})


async def looked_at(secret: VaultSecret) -> list[str]:
    """Return the secrets of the older versions, in the order in which a search reads them."""
    seen: list[str] = []

    def is_wanted(value: SecretStr) -> bool:
        seen.append(value.get_secret_value())
        return False

    assert await secret.read_older(is_wanted) is None
    return seen


async def test_older_versions_are_looked_at_from_the_newest(secret: VaultSecret) -> None:
    """A search reads every version before the current one, newest first."""
    await store(secret, "one", "two", "three", "current")

    assert await looked_at(secret) == ["three", "two", "one"]


async def test_the_first_older_version_that_is_wanted_is_found(secret: VaultSecret) -> None:
    """A search ends at the first wanted version."""
    await store(secret, "a-1", "b", "a-2", "c", "a-3")

    found = await secret.read_older(lambda value: value.get_secret_value().startswith("a-"))

    assert found == SecretStr("a-2")


async def test_older_versions_that_are_gone_are_passed_over(vault: TestVault, secret: VaultSecret) -> None:
    """Deleted and destroyed versions, versions without the field, and those dropped by the engine are skipped."""
    kv = vault.root.secrets.kv.v2
    kv.update_metadata(secret.path, max_versions=6)
    await store(secret, "dropped", "kept", "deleted", "destroyed")
    kv.create_or_update_secret(secret.path, {"beside": "another field"})
    await store(secret, "newest", "current")
    kv.delete_secret_versions(secret.path, [3])
    kv.destroy_secret_versions(secret.path, [4])

    assert await looked_at(secret) == ["newest", "kept"]


async def test_an_older_version_that_will_be_deleted_later_is_there(vault: TestVault, secret: VaultSecret) -> None:
    """A version that is deleted at a future time is like any other until then."""
    vault.root.secrets.kv.v2.update_metadata(secret.path, delete_version_after="3h")
    await store(secret, "old", "current")

    assert await looked_at(secret) == ["old"]


async def test_a_deleted_current_version_leaves_the_older_ones(vault: TestVault, secret: VaultSecret) -> None:
    """Older versions are found although the current one holds nothing."""
    await store(secret, "old", "current")
    vault.root.secrets.kv.v2.delete_latest_version_of_secret(secret.path)

    assert await looked_at(secret) == ["old"]


async def test_nothing_older_is_found_where_nothing_was_written(secret: VaultSecret) -> None:
    """A path that does not exist has no versions."""
    assert await looked_at(secret) == []


async def test_a_search_that_is_not_allowed_says_so(vault: TestVault) -> None:
    """Without read on the metadata the versions are unknown, which must not look like finding none."""
    path = next(paths)
    role_id, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE})
    limited = block(vault, AppRoleAuth(role_id=role_id, secret_id=secret_id), path=path)
    await store(limited, "old", "current")

    with pytest.raises(ForbiddenError, match="does not permit reading the versions"):
        await limited.read_older(lambda _value: True)
    await limited.aclose()
