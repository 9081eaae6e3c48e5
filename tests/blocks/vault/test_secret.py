"""A secret in Vault as a destination: the same promises against the stand-in and against a real server."""

from __future__ import annotations

import hvac
import pytest
import requests
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.errors import ConflictError, NotFoundError
from blocks.vault.auth import AppRoleAuth, TokenAuth
from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.conftest import KEY, LABELS, block, paths
from tests.blocks.vault.vaults import READ_WRITE, TestVault


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
    """Only the field of the key changes; other fields at the path stay."""
    fields = {"username": "someone", "port": 5432, "value": "old"}
    vault.root.secrets.kv.v2.create_or_update_secret(secret.path, fields)

    await secret.write_content(KEY, await secret.read_content(), {})

    stored = vault.root.secrets.kv.v2.read_secret_version(secret.path, raise_on_deleted_version=True)
    assert stored["data"]["data"] == {**fields, "value": KEY.get_secret_value()}


NUMBERS = '"a":0.12345678901234567890,"b":12345678901234567890.5,"c":18446744073709551616,"d":1e300,"e":1.0,"f":-0.0'


def exchange(vault: TestVault, method: str, path: str, body: str = "") -> str:
    """Send a body as it is, and return the fields of the answer as they are."""
    url, token = f"{vault.url}/v1/secret/data/{path}", {"X-Vault-Token": ROOT_TOKEN}
    answer = requests.request(method, url, data=body, headers=token, timeout=5)
    return answer.text.partition('"data":{"data":')[2].partition("}")[0]


async def test_numbers_of_other_fields_are_kept(vault: TestVault, secret: VaultSecret) -> None:
    """Given numbers with many digits beside the key, when it is written, then Vault shows them as it did before."""
    exchange(vault, "POST", secret.path, f'{{"data":{{{NUMBERS},"value":"old"}}}}')
    before = exchange(vault, "GET", secret.path)

    await secret.write_content(KEY, await secret.read_content(), {})

    assert before.count(":") == NUMBERS.count(":") + 1
    assert exchange(vault, "GET", secret.path) == before.replace("old", KEY.get_secret_value())


async def test_older_versions_survive(vault: TestVault, secret: VaultSecret) -> None:
    """A write adds a version and does not change the older ones."""
    for value in ("one", "two"):
        await secret.write_content(SecretStr(value), await secret.read_content(), LABELS)

    first = vault.root.secrets.kv.v2.read_secret_version(secret.path, version=1, raise_on_deleted_version=True)

    assert first["data"]["data"] == {"value": "one"}


async def test_a_write_after_somebody_elses_is_refused(vault: TestVault, secret: VaultSecret) -> None:
    """With check-and-set, a writer cannot overwrite what was written since its read."""
    held = await secret.read_content()
    vault.root.secrets.kv.v2.create_or_update_secret(secret.path, {"value": "by hand"})

    with pytest.raises(ConflictError):
        await secret.write_content(KEY, held, LABELS)

    assert (await secret.read_content()).value == SecretStr("by hand")


async def test_a_fence_makes_a_prepared_write_fail(secret: VaultSecret) -> None:
    """A fence keeps the content, but a write prepared before it is refused."""
    await secret.write_content(SecretStr("current"), await secret.read_content(), {})
    prepared = await secret.read_content()

    fenced = await secret.fence(prepared)

    assert (fenced.value, fenced.version) == (SecretStr("current"), 2)
    with pytest.raises(ConflictError):
        await secret.write_content(KEY, prepared, {})


async def test_custom_metadata_says_who_wrote_and_keeps_what_others_said(vault: TestVault, secret: VaultSecret) -> None:
    """The path's custom metadata names the rotation and the time; other people's labels and settings stay."""
    kv = vault.root.secrets.kv.v2
    kv.update_metadata(secret.path, max_versions=7, delete_version_after="3h", custom_metadata={"owner": "team-a"})

    await secret.write_content(KEY, await secret.read_content(), LABELS)
    await secret.write_content(SecretStr("next"), await secret.read_content(), LABELS)

    metadata = kv.read_secret_metadata(secret.path)["data"]
    assert metadata["custom_metadata"] == {"owner": "team-a", **LABELS}
    assert metadata["max_versions"] == 7


async def test_a_soft_deleted_secret_can_be_written_again(vault: TestVault, secret: VaultSecret) -> None:
    """A deleted latest version holds nothing, but its number is used for check-and-set."""
    await secret.write_content(SecretStr("old"), await secret.read_content(), {})
    vault.root.secrets.kv.v2.delete_latest_version_of_secret(secret.path)

    held = await secret.read_content()
    await secret.write_content(KEY, held, {})

    assert (held.value, held.version) == (None, 1)
    assert (await secret.read_content()).value == KEY


async def test_a_destroyed_secret_can_be_written_again(vault: TestVault, secret: VaultSecret) -> None:
    """A destroyed latest version holds nothing, but its number is used for check-and-set."""
    await secret.write_content(SecretStr("old"), await secret.read_content(), {})
    vault.root.secrets.kv.v2.destroy_secret_versions(secret.path, [1])

    held = await secret.read_content()
    await secret.write_content(KEY, held, {})

    assert (held.value, held.version) == (None, 1)
    assert (await secret.read_content()).value == KEY


async def test_a_fence_guards_an_empty_path_too(secret: VaultSecret) -> None:
    """At an empty path, too, a fence makes a write fail that was prepared before it."""
    prepared = await secret.read_content()

    fenced = await secret.fence(prepared)

    assert fenced.value is None
    with pytest.raises(ConflictError):
        await secret.write_content(KEY, prepared, {})


async def test_labels_beyond_vaults_limits_are_cut(vault: TestVault, secret: VaultSecret) -> None:
    """A label that is too long for Vault is truncated, so that it does not spoil the others."""
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
    """If a policy allows metadata updates but no patches, labels are merged with those of other people."""
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
    """A version 1 engine answers alike for an absent secret; the error names it, and nothing is stored there."""
    secret = block(vault, mount="kv-one")

    with pytest.raises(NotFoundError, match="no KV version 2 engine at the mount kv-one"):
        await secret.write_content(KEY, await secret.read_content(), {})

    with pytest.raises(hvac.exceptions.InvalidPath):
        vault.root.secrets.kv.v1.read_secret(f"data/{secret.path}", mount_point="kv-one")


async def test_a_field_that_is_no_text_is_read_as_json(vault: TestVault, secret: VaultSecret) -> None:
    """A number or an object in the field is somebody else's value; reading it must not fail."""
    vault.root.secrets.kv.v2.create_or_update_secret(secret.path, {"value": {"a": 1}})

    held = await secret.read_content()

    assert held.value == SecretStr('{"a": 1}')


@pytest.mark.parametrize("path", ["a b", "100%", "what?", "sharp#", "ünïcode", "a%2e%2e/b", "deep/er/still"])
async def test_odd_paths_are_stored_where_they_say(vault: TestVault, path: str) -> None:
    """Paths are percent-encoded, so that each is found under exactly the same name."""
    secret = block(vault, path=path)

    await secret.write_content(KEY, await secret.read_content(), {})

    assert vault.root.secrets.kv.v2.read_secret_version(path, raise_on_deleted_version=True)["data"]["data"] == {
        "value": KEY.get_secret_value()
    }
    await secret.aclose()


async def test_an_approle_with_the_least_policy_can_rotate(vault: TestVault) -> None:
    """Read, create and update on the one data path suffice; without metadata permission, labels are left out."""
    path = next(paths)
    role, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE})
    secret = block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path)

    await secret.write_content(KEY, await secret.read_content(), LABELS)

    assert (await secret.read_content()).value == KEY
    await secret.aclose()


async def test_a_token_that_ended_is_renewed_by_logging_in_again(vault: TestVault) -> None:
    """If the token of an AppRole expires between two calls, a new login replaces it."""
    path = next(paths)
    role, secret_id = vault.make_role({f"secret/data/{path}": READ_WRITE})
    secret = block(vault, AppRoleAuth(role_id=role, secret_id=secret_id), path=path)
    held = await secret.read_content()

    vault.end_tokens()
    await secret.write_content(KEY, held, {})

    assert (await secret.read_content()).value == KEY
    await secret.aclose()


@pytest.mark.parametrize("path", ["../x", "a//b", "a/./b", "line\nbreak", "nul\0", "", "/", "x" * 600])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    """A path that is too long, or has empty, '.' or '..' segments or control characters, is refused by name."""
    credentials = VaultCredentials(url="http://127.0.0.1:1", auth=TokenAuth(token="t"))

    with pytest.raises(ValueError, match="path"):
        VaultSecret(credentials=credentials, path=path)


@pytest.mark.parametrize("url", ["http://vault.example.com", "ftp://127.0.0.1", "https://user:pw@vault", "vault"])
def test_a_token_is_sent_over_https_only(url: str) -> None:
    """An address that is not https is refused, unless it is loopback."""
    with pytest.raises(ValueError, match="url"):
        VaultCredentials(url=url, auth=TokenAuth(token="t"))


def test_a_place_is_told_apart_by_the_whole_url() -> None:
    """Two Vaults behind one gateway are two places, and one Vault in two spellings is one."""

    def place(url: str) -> str:
        credentials = VaultCredentials(url=url, auth=TokenAuth(token=SecretStr("t")))
        return VaultSecret(credentials=credentials, path="app").place()

    assert place("https://gateway.example/one") != place("https://gateway.example/two")
    assert place("https://vault.example") == place("https://VAULT.example:443/")
