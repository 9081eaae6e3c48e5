"""The Vault stand-in answers like a real server; hvac sends the same requests to both."""

from __future__ import annotations

import itertools
from typing import Any

import hvac
import pytest
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, VaultDown

from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.vaults import READ_WRITE, TestVault

paths = (f"contract/secret-{number}" for number in itertools.count())
PATCH = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture
def path() -> str:
    """A unique path."""
    return next(paths)


@pytest.fixture
def kv(vault: TestVault) -> Any:
    """The KV version 2 engine, with a root token."""
    return vault.root.secrets.kv.v2


def log_in(vault: TestVault, policy: dict[str, set[str]]) -> hvac.Client:
    """Return a client with a policy."""
    client = hvac.Client(url=vault.url, token="")
    client.auth.approle.login(*vault.make_role(policy))
    return client


def read(kv: Any, path: str, version: int | None = None) -> dict[str, Any]:
    """Return data and metadata of a version."""
    read: dict[str, Any] = kv.read_secret_version(path, version=version, raise_on_deleted_version=False)["data"]
    return read


def test_each_write_adds_a_version(kv: Any, path: str) -> None:
    """Versions count from 1, and each keeps its data."""
    numbers = [kv.create_or_update_secret(path, {"n": n})["data"]["version"] for n in range(3)]

    assert numbers == [1, 2, 3]
    assert read(kv, path, version=2)["data"] == {"n": 1}


def test_check_and_set_compares_with_the_current_version(kv: Any, path: str) -> None:
    """0 means that nothing exists yet; any other number must be the current version."""
    kv.create_or_update_secret(path, {"n": 1}, cas=0)

    with pytest.raises(InvalidRequest, match="check-and-set parameter did not match the current version"):
        kv.create_or_update_secret(path, {"n": 2}, cas=0)
    assert kv.create_or_update_secret(path, {"n": 2}, cas=1)["data"]["version"] == 2


def test_check_and_set_can_be_required(kv: Any, path: str) -> None:
    """A path can require check-and-set for every write."""
    kv.update_metadata(path, cas_required=True)

    with pytest.raises(InvalidRequest, match="check-and-set parameter required"):
        kv.create_or_update_secret(path, {"n": 1})


def test_a_soft_delete_can_be_undone(kv: Any, path: str) -> None:
    """A deleted version is a 404 with its metadata, until it is undeleted."""
    kv.create_or_update_secret(path, {"n": 1})
    kv.delete_latest_version_of_secret(path)
    deleted = read(kv, path)

    kv.undelete_secret_versions(path, [1])

    assert (deleted["data"], deleted["metadata"]["version"], deleted["metadata"]["destroyed"]) == (None, 1, False)
    assert deleted["metadata"]["deletion_time"]
    assert read(kv, path)["data"] == {"n": 1}


def test_a_destroyed_version_cannot_come_back(kv: Any, path: str) -> None:
    """A destroyed version stays a 404, and its metadata says so."""
    kv.create_or_update_secret(path, {"n": 1})
    kv.destroy_secret_versions(path, [1])
    kv.undelete_secret_versions(path, [1])

    with pytest.raises(InvalidPath) as missing:
        read(kv, path)

    assert missing.value.json["data"]["metadata"]["destroyed"] is True


def test_old_versions_are_dropped_beyond_the_limit(kv: Any, path: str) -> None:
    """The path's `max_versions` limits the number of kept versions."""
    kv.update_metadata(path, max_versions=2)
    for n in range(4):
        kv.create_or_update_secret(path, {"n": n})

    metadata = kv.read_secret_metadata(path)["data"]

    assert (sorted(metadata["versions"]), metadata["current_version"], metadata["oldest_version"]) == (["3", "4"], 4, 3)


def test_a_patch_changes_some_fields(vault: TestVault, kv: Any, path: str) -> None:
    """A merge patch keeps the other fields, removes those that are null, and creates a version."""
    kv.create_or_update_secret(path, {"kept": "k", "changed": "old", "gone": "g"})

    body = {"data": {"changed": "new", "gone": None}, "options": {"cas": 1}}
    vault.root.adapter.request("patch", f"/v1/secret/data/{path}", headers=dict(PATCH), json=body)

    now = read(kv, path)
    assert (now["data"], now["metadata"]["version"]) == ({"kept": "k", "changed": "new"}, 2)


def test_a_patch_needs_its_content_type(vault: TestVault, kv: Any, path: str) -> None:
    """A patch sent as plain JSON is a 415."""
    kv.create_or_update_secret(path, {"n": 1})

    answer = vault.root.adapter.request("patch", f"/v1/secret/metadata/{path}", raise_exception=False, json={})

    assert answer.status_code == 415


@pytest.mark.parametrize("kind", ["data", "metadata"])
def test_a_patch_needs_something_to_patch(vault: TestVault, path: str, kind: str) -> None:
    """A patch of a path that does not exist is refused."""
    with pytest.raises(InvalidPath):
        vault.root.adapter.request(
            "patch", f"/v1/secret/{kind}/{path}", headers=dict(PATCH), json={"data": {"n": 1}, "custom_metadata": {}}
        )


def test_metadata_is_replaced_by_post_and_merged_by_patch(vault: TestVault, kv: Any, path: str) -> None:
    """A POST replaces all custom metadata; a PATCH changes what it names."""
    url = f"/v1/secret/metadata/{path}"
    kv.update_metadata(path, custom_metadata={"first": "1"})
    kv.update_metadata(path, custom_metadata={"second": "2", "third": "3"})
    patch = {"custom_metadata": {"third": None, "fourth": "4"}}
    vault.root.adapter.request("patch", url, headers=dict(PATCH), json=patch)

    assert kv.read_secret_metadata(path)["data"]["custom_metadata"] == {"second": "2", "fourth": "4"}


@pytest.mark.parametrize(
    "custom",
    [{"k" * 129: "v"}, {"k": "v" * 513}, {"k": ""}, {"k": "a\nb"}, {f"k{n}": "v" for n in range(65)}],
    ids=["long key", "long value", "empty value", "line break", "65 keys"],
)
def test_custom_metadata_has_limits(kv: Any, path: str, custom: dict[str, str]) -> None:
    """Keys, values and their number are limited; if one limit is exceeded, all of them are refused."""
    with pytest.raises(InvalidRequest, match="custom_metadata validation failed"):
        kv.update_metadata(path, custom_metadata=custom)


def test_deleting_metadata_deletes_everything(kv: Any, path: str) -> None:
    """Without its metadata, a path is as if it had never existed."""
    kv.create_or_update_secret(path, {"n": 1})

    kv.delete_metadata_and_all_versions(path)

    with pytest.raises(InvalidPath):
        kv.read_secret_metadata(path)
    assert kv.create_or_update_secret(path, {"n": 1}, cas=0)["data"]["version"] == 1


def test_paths_are_listed_by_folder(kv: Any, path: str) -> None:
    """A list shows the secrets and folders one level down."""
    kv.create_or_update_secret(f"{path}/a", {})
    kv.create_or_update_secret(f"{path}/b/c", {})

    assert kv.list_secrets(path)["data"]["keys"] == ["a", "b/"]


def test_what_does_not_exist_is_404_without_a_word(kv: Any, path: str) -> None:
    """The empty list of errors for an absent secret distinguishes it from an absent engine."""
    with pytest.raises(InvalidPath) as secret:
        read(kv, path)
    with pytest.raises(InvalidPath) as engine:
        kv.read_secret_version(path, mount_point="nowhere", raise_on_deleted_version=False)

    assert secret.value.errors == []
    assert "no handler for route" in engine.value.errors[0]


def test_a_write_needs_data(vault: TestVault, path: str) -> None:
    """A document that is not wrapped in `data` is refused."""
    with pytest.raises(InvalidRequest, match="no data provided"):
        vault.root.adapter.post(f"/v1/secret/data/{path}", json={"value": "x"})


def test_a_policy_tells_creating_from_updating(vault: TestVault, kv: Any, path: str) -> None:
    """`update` does not allow a write to an empty path, and `create` does not allow an overwrite."""
    updater, creator = (log_in(vault, {f"secret/data/{path}": {verb}}) for verb in ("update", "create"))

    with pytest.raises(Forbidden):
        updater.secrets.kv.v2.create_or_update_secret(path, {"n": 1})
    creator.secrets.kv.v2.create_or_update_secret(path, {"n": 1})
    with pytest.raises(Forbidden):
        creator.secrets.kv.v2.create_or_update_secret(path, {"n": 2})
    assert updater.secrets.kv.v2.create_or_update_secret(path, {"n": 2})["data"]["version"] == 2


def test_the_most_exact_rule_of_a_policy_wins(vault: TestVault, path: str) -> None:
    """An exact path beats a prefix, and `deny` beats all."""
    rules = {"secret/data/contract/*": READ_WRITE, f"secret/data/{path}": {"deny"}}

    client = log_in(vault, rules)

    with pytest.raises(Forbidden):
        read(client.secrets.kv.v2, path)
    with pytest.raises(InvalidPath):
        read(client.secrets.kv.v2, "contract/elsewhere")


def test_capabilities_are_told(vault: TestVault, path: str) -> None:
    """A token can read its own capabilities; without any, the answer is `deny`."""
    client = log_in(vault, {f"secret/data/{path}": READ_WRITE})

    here, there = (client.sys.get_capabilities([f"secret/data/{p}"])["capabilities"] for p in (path, "else"))

    assert (sorted(here), there) == (sorted(READ_WRITE), ["deny"])


def test_the_engine_of_a_mount_is_told_to_who_may_use_it(vault: TestVault, path: str) -> None:
    """A token with any capability below a mount sees its engine's version; others get 403."""
    client = log_in(vault, {f"secret/data/{path}": READ_WRITE})

    mount = client.adapter.get("/v1/sys/internal/ui/mounts/secret")["data"]

    assert (mount["path"], mount["type"], mount["options"]["version"]) == ("secret/", "kv", "2")
    with pytest.raises(Forbidden):
        client.adapter.get("/v1/sys/internal/ui/mounts/kv-one")


def test_a_token_knows_itself_and_can_end(vault: TestVault) -> None:
    """A login's token can be looked up, renewed and revoked; a revoked one is useless."""
    client = log_in(vault, {"secret/data/x": {"read"}})
    ttl = client.auth.token.lookup_self()["data"]["ttl"]
    client.auth.token.renew_self()

    client.auth.token.revoke_self()

    assert ttl > 0
    with pytest.raises(Forbidden):
        client.auth.token.lookup_self()


@pytest.mark.parametrize("token", ["", "hvs.wrong"])
def test_a_wrong_token_is_403(vault: TestVault, token: str, path: str) -> None:
    """A missing token and a wrong one get the same answer."""
    with pytest.raises(Forbidden, match="permission denied"):
        read(hvac.Client(url=vault.url, token=token).secrets.kv.v2, path)


def test_a_wrong_login_is_refused(vault: TestVault) -> None:
    """A wrong role is 400, an auth method that is not enabled is 403."""
    vault.make_role({"secret/data/x": {"read"}})
    client = hvac.Client(url=vault.url, token="")

    with pytest.raises(InvalidRequest):
        client.auth.approle.login("nobody", "nothing")
    with pytest.raises(Forbidden):
        client.auth.approle.login("nobody", "nothing", mount_point="nowhere")


def test_an_unknown_namespace_is_404(vault: TestVault, path: str) -> None:
    """An unknown namespace must not be treated as the root namespace."""
    client = hvac.Client(url=vault.url, token=ROOT_TOKEN, namespace="nowhere")

    with pytest.raises(InvalidPath):
        read(client.secrets.kv.v2, path)


def test_a_sealed_vault_answers_503(sealed_vault: str) -> None:
    """A sealed Vault shows its health and its seal status, and nothing else."""
    client = hvac.Client(url=sealed_vault, token=ROOT_TOKEN)

    assert client.sys.is_sealed()
    assert client.sys.read_health_status(method="GET").status_code == 503
    with pytest.raises(VaultDown, match="Vault is sealed"):
        client.secrets.kv.v2.read_secret("x", raise_on_deleted_version=True)
    with pytest.raises(VaultDown):
        client.auth.approle.login("nobody", "nothing")
