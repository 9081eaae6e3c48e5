"""A secret in Vault as a destination: the same promises against the stand-in and against a real server."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import nullcontext

import hvac
import pytest
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from blocks.vault.auth import AppRoleAuth, TokenAuth
from sandbox.stack import free_port
from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.vaults import READ_WRITE, TestVault, at_once

KEY = SecretStr("sk-or-v1-the-new-key")
LABELS = {"key_rotation": "checkout", "written_at": "2026-12-01T03:30:00+00:00"}
paths = (f"apps/checkout-{number}" for number in itertools.count())


def block(vault: TestVault, auth: object = None, **fields: str) -> VaultSecret:
    """A secret at a path of its own."""
    credentials = VaultCredentials(url=vault.url, auth=auth or TokenAuth(token=ROOT_TOKEN))
    return VaultSecret(credentials=credentials, path=fields.pop("path", None) or next(paths), **fields)


@pytest.fixture
async def secret(vault: TestVault) -> AsyncIterator[VaultSecret]:
    """A secret at a path where nothing is stored yet."""
    made = block(vault)
    yield made
    await made.aclose()


async def test_nothing_is_held_where_nothing_was_written(secret: VaultSecret) -> None:
    """A path that does not exist holds nothing, at version 0."""
    held = await secret.read_content()

    assert (held.value, held.version) == (None, 0)


async def test_what_was_written_is_read_back(secret: VaultSecret) -> None:
    """The secret is read back as it was written, under the next version."""
    await secret.write_content(KEY, await secret.read_content(), LABELS)

    held = await secret.read_content()

    assert (held.value, held.version) == (KEY, 1)


async def test_other_fields_are_kept(vault: TestVault, secret: VaultSecret) -> None:
    """Only the field of the key changes; what else is stored at the path stays."""
    fields = {"username": "someone", "port": 5432, "value": "old"}
    vault.root.secrets.kv.v2.create_or_update_secret(secret.path, fields)

    await secret.write_content(KEY, await secret.read_content(), {})

    stored = vault.root.secrets.kv.v2.read_secret_version(secret.path, raise_on_deleted_version=True)
    assert stored["data"]["data"] == {**fields, "value": KEY.get_secret_value()}


async def test_older_versions_survive(vault: TestVault, secret: VaultSecret) -> None:
    """A write adds a version and leaves the older ones as they were."""
    for value in ("one", "two"):
        await secret.write_content(SecretStr(value), await secret.read_content(), LABELS)

    first = vault.root.secrets.kv.v2.read_secret_version(secret.path, version=1, raise_on_deleted_version=True)

    assert first["data"]["data"] == {"value": "one"}


async def test_a_write_after_somebody_elses_is_refused(vault: TestVault, secret: VaultSecret) -> None:
    """Check-and-set: who read before somebody else wrote cannot overwrite them."""
    held = await secret.read_content()
    vault.root.secrets.kv.v2.create_or_update_secret(secret.path, {"value": "by hand"})

    with pytest.raises(ConflictError):
        await secret.write_content(KEY, held, LABELS)

    assert (await secret.read_content()).value == SecretStr("by hand")


async def test_a_fence_makes_a_prepared_write_fail(secret: VaultSecret) -> None:
    """After a fence the content is the same, and a write that was prepared before it is refused."""
    await secret.write_content(SecretStr("current"), await secret.read_content(), {})
    prepared = await secret.read_content()

    fenced = await secret.fence(prepared)

    assert (fenced.value, fenced.version) == (SecretStr("current"), 2)
    with pytest.raises(ConflictError):
        await secret.write_content(KEY, prepared, {})


async def test_custom_metadata_says_who_wrote_and_keeps_what_others_said(vault: TestVault, secret: VaultSecret) -> None:
    """The path's custom metadata names the rotation and the time; other labels and settings stay."""
    kv = vault.root.secrets.kv.v2
    kv.update_metadata(secret.path, max_versions=7, delete_version_after="3h", custom_metadata={"owner": "team-a"})

    await secret.write_content(KEY, await secret.read_content(), LABELS)
    await secret.write_content(SecretStr("next"), await secret.read_content(), LABELS)

    metadata = kv.read_secret_metadata(secret.path)["data"]
    assert metadata["custom_metadata"] == {"owner": "team-a", **LABELS}
    assert metadata["max_versions"] == 7


async def test_a_soft_deleted_secret_can_be_written_again(vault: TestVault, secret: VaultSecret) -> None:
    """A deleted latest version holds nothing, yet its number is known for check-and-set."""
    await secret.write_content(SecretStr("old"), await secret.read_content(), {})
    vault.root.secrets.kv.v2.delete_latest_version_of_secret(secret.path)

    held = await secret.read_content()
    await secret.write_content(KEY, held, {})

    assert (held.value, held.version) == (None, 1)
    assert (await secret.read_content()).value == KEY


async def test_a_destroyed_secret_can_be_written_again(vault: TestVault, secret: VaultSecret) -> None:
    """A destroyed latest version holds nothing, yet its number is known for check-and-set."""
    await secret.write_content(SecretStr("old"), await secret.read_content(), {})
    vault.root.secrets.kv.v2.destroy_secret_versions(secret.path, [1])

    held = await secret.read_content()
    await secret.write_content(KEY, held, {})

    assert (held.value, held.version) == (None, 1)
    assert (await secret.read_content()).value == KEY


async def test_a_fence_guards_an_empty_path_too(secret: VaultSecret) -> None:
    """Where nothing is stored yet, a fence still makes a write that was prepared before it fail."""
    prepared = await secret.read_content()

    fenced = await secret.fence(prepared)

    assert fenced.value is None
    with pytest.raises(ConflictError):
        await secret.write_content(KEY, prepared, {})


async def store(secret: VaultSecret, *values: str) -> None:
    """Write one version after the other."""
    for value in values:
        await secret.write_content(SecretStr(value), await secret.read_content(), {})


async def looked_at(secret: VaultSecret) -> list[str]:
    """The older versions' secrets, as a search that never ends meets them."""
    seen: list[str] = []

    def is_wanted(value: SecretStr) -> bool:
        seen.append(value.get_secret_value())
        return False

    assert await secret.read_older(is_wanted) is None
    return seen


async def test_older_versions_are_looked_at_from_the_newest(secret: VaultSecret) -> None:
    """A search meets every version before the current one, the newest first."""
    await store(secret, "one", "two", "three", "current")

    assert await looked_at(secret) == ["three", "two", "one"]


async def test_the_first_older_version_that_is_wanted_is_found(secret: VaultSecret) -> None:
    """A search ends where it finds what is wanted."""
    await store(secret, "a-1", "b", "a-2", "c", "a-3")

    found = await secret.read_older(lambda value: value.get_secret_value().startswith("a-"))

    assert found == SecretStr("a-2")


async def test_older_versions_that_are_gone_are_passed_over(vault: TestVault, secret: VaultSecret) -> None:
    """Deleted and destroyed versions, those without the field, and those dropped by the engine hold nothing."""
    kv = vault.root.secrets.kv.v2
    kv.update_metadata(secret.path, max_versions=6)
    await store(secret, "dropped", "kept", "deleted", "destroyed")
    kv.create_or_update_secret(secret.path, {"beside": "another field"})
    await store(secret, "newest", "current")
    kv.delete_secret_versions(secret.path, [3])
    kv.destroy_secret_versions(secret.path, [4])

    assert await looked_at(secret) == ["newest", "kept"]


async def test_an_older_version_that_will_be_deleted_later_is_there(vault: TestVault, secret: VaultSecret) -> None:
    """A version with an end in the future is one like any other."""
    vault.root.secrets.kv.v2.update_metadata(secret.path, delete_version_after="3h")
    await store(secret, "old", "current")

    assert await looked_at(secret) == ["old"]


async def test_a_deleted_current_version_leaves_the_older_ones(vault: TestVault, secret: VaultSecret) -> None:
    """What was stored before is found even where nothing is held any more."""
    await store(secret, "old", "current")
    vault.root.secrets.kv.v2.delete_latest_version_of_secret(secret.path)

    assert await looked_at(secret) == ["old"]


async def test_nothing_older_is_found_where_nothing_was_written(secret: VaultSecret) -> None:
    """A path that does not exist has no versions."""
    assert await looked_at(secret) == []


async def test_a_search_that_is_not_allowed_says_so(vault: TestVault) -> None:
    """Without read on the metadata nobody knows the versions, which must not look like finding nothing."""
    path = next(paths)
    role_id, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE})
    limited = block(vault, AppRoleAuth(role_id=role_id, secret_id=secret_id), path=path)
    await store(limited, "old", "current")

    with pytest.raises(ForbiddenError, match="does not permit reading the versions"):
        await limited.read_older(lambda _value: True)
    await limited.aclose()


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
    """What the policy grants decides whether a write would be allowed, and asking writes nothing."""
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
    """A root token is granted everything by one word."""
    assert "can be read and written" in await secret.check()


async def test_a_token_that_may_not_ask_leaves_it_open(vault: TestVault) -> None:
    """Without the permission to ask, nobody knows."""
    path = next(paths)
    role_id, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE, "sys/capabilities-self": {"deny"}})
    limited = block(vault, AppRoleAuth(role_id=role_id, secret_id=secret_id), path=path)

    assert "may not ask whether it may write" in await limited.check()
    await limited.aclose()


async def test_labels_beyond_vaults_limits_are_cut(vault: TestVault, secret: VaultSecret) -> None:
    """A label that Vault would refuse is cut to what it takes, so that the others are kept as well."""
    labels = {"long": "x" * 600, "lines": "one\ntwo", "accents": "é" * 300, "empty": "", "k" * 200: "v"}

    await secret.write_content(KEY, await secret.read_content(), labels)

    metadata = vault.root.secrets.kv.v2.read_secret_metadata(secret.path)["data"]
    assert metadata["custom_metadata"] == {
        "long": "x" * 512,
        "lines": "onetwo",
        "accents": "é" * 256,
        "k" * 128: "v",
    }


async def test_labels_need_no_patch_permission(vault: TestVault) -> None:
    """Where a policy allows metadata updates but not patches, labels are merged with what others put there."""
    path = next(paths)
    vault.root.secrets.kv.v2.update_metadata(path, max_versions=7, custom_metadata={"owner": "team-a"})
    metadata = {f"secret/metadata/{path}": {"update"}}
    role, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE, **metadata})
    secret = block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path)

    await secret.write_content(KEY, await secret.read_content(), LABELS)

    stored = vault.root.secrets.kv.v2.read_secret_metadata(path)["data"]
    assert (stored["custom_metadata"], stored["max_versions"]) == ({"owner": "team-a", **LABELS}, 7)
    await secret.aclose()


async def test_a_version_1_engine_is_never_written_to(vault: TestVault) -> None:
    """An engine of version 1 answers alike for an absent secret; it is named, and nothing is stored there."""
    secret = block(vault, mount="kv-one")

    with pytest.raises(NotFoundError, match="no KV version 2 engine at the mount kv-one"):
        await secret.write_content(KEY, await secret.read_content(), {})

    with pytest.raises(hvac.exceptions.InvalidPath):
        vault.root.secrets.kv.v1.read_secret(f"data/{secret.path}", mount_point="kv-one")


async def test_a_field_that_is_no_text_is_read_as_json(vault: TestVault, secret: VaultSecret) -> None:
    """A field that holds a number or an object is something foreign; it is read without failing."""
    vault.root.secrets.kv.v2.create_or_update_secret(secret.path, {"value": {"a": 1}})

    held = await secret.read_content()

    assert held.value == SecretStr('{"a": 1}')


@pytest.mark.parametrize("path", ["a b", "100%", "what?", "sharp#", "ünïcode", "a%2e%2e/b", "deep/er/still"])
async def test_odd_paths_are_stored_where_they_say(vault: TestVault, path: str) -> None:
    """A path is percent-encoded on its way, so that it is found under the very same name."""
    secret = block(vault, path=path)

    await secret.write_content(KEY, await secret.read_content(), {})

    assert vault.root.secrets.kv.v2.read_secret_version(path, raise_on_deleted_version=True)["data"]["data"] == {
        "value": KEY.get_secret_value()
    }
    await secret.aclose()


async def test_an_approle_with_the_least_policy_can_rotate(vault: TestVault) -> None:
    """Read, create and update on the one data path are enough; labels are left out without metadata permission."""
    path = next(paths)
    role, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE})
    secret = block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path)

    await secret.write_content(KEY, await secret.read_content(), LABELS)

    assert (await secret.read_content()).value == KEY
    await secret.aclose()


async def test_a_token_that_ended_is_renewed_by_logging_in_again(vault: TestVault) -> None:
    """A machine whose token ends between two calls goes on with a new one."""
    path = next(paths)
    role, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE})
    secret = block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path)
    held = await secret.read_content()

    vault.end_tokens()
    await secret.write_content(KEY, held, {})

    assert (await secret.read_content()).value == KEY
    await secret.aclose()


async def test_check_says_that_it_works(vault: TestVault) -> None:
    """A check of a usable secret answers with one sentence."""
    assert "can be read and written" in await block(vault).check()


async def test_check_names_a_wrong_token(vault: TestVault) -> None:
    """A token that Vault does not know is called wrong or ended."""
    with pytest.raises(UnauthorizedError, match="does not accept the token"):
        await block(vault, TokenAuth(token="hvs.wrong")).check()


async def test_check_names_a_refused_login(vault: TestVault) -> None:
    """A wrong AppRole is called a refused login, without quoting it."""
    with pytest.raises(UnauthorizedError, match="refused the login at auth/approle") as refused:
        await block(vault, AppRoleAuth(role_id="nobody", secret_id="guess-of-a-secret")).check()

    assert "guess" not in str(refused.value)


async def test_check_names_the_missing_permission(vault: TestVault) -> None:
    """A role that may only read is told what it lacks, and where."""
    path = next(paths)
    role, secret_id = vault.make_role({f"secret/data/{path}": {"read"}})

    with pytest.raises(ForbiddenError, match=f"does not grant create, update on secret/data/{path}"):
        await block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path).check()


async def test_check_names_an_unknown_mount(vault: TestVault) -> None:
    """A mount that does not exist is named."""
    with pytest.raises(NotFoundError, match="no KV version 2 engine at the mount nowhere"):
        await block(vault, mount="nowhere").check()


async def test_check_says_that_vault_is_sealed(sealed_vault: str) -> None:
    """A sealed Vault is called sealed, and nothing can have happened there."""
    credentials = VaultCredentials(url=sealed_vault, auth=TokenAuth(token=ROOT_TOKEN))

    with pytest.raises(UnavailableError, match="is sealed") as failed:
        await VaultSecret(credentials=credentials, path="x").check()

    assert failed.value.outcome_unknown is False


async def test_check_says_that_the_host_is_unreachable() -> None:
    """An address where nothing listens is called unreachable, and the outcome is certain."""
    credentials = VaultCredentials(url=f"http://127.0.0.1:{free_port()}", auth=TokenAuth(token=ROOT_TOKEN))
    credentials._sleep = at_once

    with pytest.raises(UnreachableError, match="no connection could be made") as failed:
        await VaultSecret(credentials=credentials, path="x").check()

    assert failed.value.outcome_unknown is False


@pytest.mark.parametrize("path", ["../x", "a//b", "a/./b", "line\nbreak", "nul\0", "", "/", "x" * 600])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    """A path with empty, '.' or '..' segments, control characters, or too long is refused by name."""
    credentials = VaultCredentials(url="http://127.0.0.1:1", auth=TokenAuth(token="t"))

    with pytest.raises(ValueError, match="path"):
        VaultSecret(credentials=credentials, path=path)


@pytest.mark.parametrize("url", ["http://vault.example.com", "ftp://127.0.0.1", "https://user:pw@vault", "vault"])
def test_a_token_is_sent_over_https_only(url: str) -> None:
    """An address that is not https is refused, unless it is loopback."""
    with pytest.raises(ValueError, match="url"):
        VaultCredentials(url=url, auth=TokenAuth(token="t"))
