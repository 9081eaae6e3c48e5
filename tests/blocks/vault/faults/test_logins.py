"""A login is shared, repeated when its token has ended, and sends nothing of this machine but its credential."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from blocks import VaultSecret
from blocks.errors import ConfigurationError, ForbiddenError, UnauthorizedError
from blocks.vault.auth import FOLDERS_SETTING, AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.faults.conftest import KEY, StandIn
from tests.blocks.vault.vaults import READ_WRITE


@pytest.mark.parametrize("auth", ["approle", "kubernetes", "jwt"])
async def test_every_login_is_repeated_when_its_token_has_ended(
    stand_in: StandIn, auth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeatable login is made once more after its token has expired, at its own mount."""
    monkeypatch.setenv(FOLDERS_SETTING, str(tmp_path))
    (tmp_path / "token").write_text("proof\n")
    stand_in.sandbox.allow_login(f"team/{auth}", "role", "proof", {"secret/data/app": READ_WRITE})
    logins = {
        "approle": AppRoleAuth(role_id="role", secret_id="proof", mount="team/approle"),
        "kubernetes": KubernetesAuth(
            kubernetes_role="role", mount="team/kubernetes", token_path=str(tmp_path / "token")
        ),
        "jwt": JwtAuth(jwt_role="role", jwt="proof", mount="team/jwt"),
    }
    secret = stand_in.secret(logins[auth])
    held = await secret.read_content()

    stand_in.time += timedelta(hours=2)
    await secret.write_content(KEY, held, {})

    assert stand_in.stored() == {"value": KEY.get_secret_value()}
    assert stand_in.requests.count(("POST", f"/v1/auth/team/{auth}/login")) == 2
    await secret.aclose()


async def test_calls_that_share_a_login_log_in_once(stand_in: StandIn) -> None:
    """Destinations with one credentials block are read concurrently: one login, and one more for an expired token."""
    stand_in.sandbox.allow_login("approle", "role", "proof", {"secret/data/app": READ_WRITE})
    secret = stand_in.secret(AppRoleAuth(role_id="role", secret_id="proof"))
    others = [VaultSecret(credentials=secret.credentials, path="app") for _ in range(5)]
    for other in others:
        other.credentials = secret.credentials
    login = ("POST", "/v1/auth/approle/login")

    await asyncio.gather(*(other.read_content() for other in others))
    logins_at_first = stand_in.requests.count(login)
    stand_in.time += timedelta(hours=2)
    await asyncio.gather(*(other.read_content() for other in others))

    assert (logins_at_first, stand_in.requests.count(login)) == (1, 2)
    await secret.aclose()


async def test_a_token_that_ended_is_told_from_a_missing_permission(stand_in: StandIn) -> None:
    """An expired static token is reported as such; one without permission is reported as accepted."""
    token = stand_in.sandbox.add_token({"secret/data/else": {"read"}}, timedelta(hours=1))
    secret = stand_in.secret(TokenAuth(token=token))

    with pytest.raises(ForbiddenError, match="accepts the token but does not permit reading secret/app"):
        await secret.read_content()
    stand_in.time += timedelta(hours=2)
    with pytest.raises(UnauthorizedError, match="wrong, has expired or was revoked"):
        await secret.read_content()

    await secret.aclose()


async def test_a_missing_service_account_names_the_field(stand_in: StandIn) -> None:
    """Outside of a pod, the error of the Kubernetes login names the missing file."""
    secret = stand_in.secret(KubernetesAuth(kubernetes_role="role"))

    with pytest.raises(ConfigurationError, match=r"auth\.token_path: .* cannot be read"):
        await secret.read_content()


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Kubernetes mounts it, which the worker's environment names through a link; beside it, a secret."""
    data = tmp_path / "account" / "..2026_12_01"
    data.mkdir(parents=True)
    (data / "token").write_text("proof")
    (data.parent / "..data").symlink_to(data.name)
    (data.parent / "token").symlink_to("..data/token")
    (tmp_path / "run").symlink_to("account")
    (tmp_path / "id_rsa").write_text("a secret of this machine")
    monkeypatch.setenv(FOLDERS_SETTING, f"/nowhere:{tmp_path / 'run'}")
    return data.parent


async def test_a_token_mounted_by_kubernetes_is_sent(stand_in: StandIn, mounted: Path) -> None:
    """Links within the folder, and the link to it, do not matter."""
    stand_in.sandbox.allow_login("kubernetes", "role", "proof", {"secret/data/app": READ_WRITE})

    for name in ("account/token", "run/token"):
        secret = stand_in.secret(KubernetesAuth(kubernetes_role="role", token_path=str(mounted.parent / name)))
        assert (await secret.read_content()).value is None
        await secret.aclose()


@pytest.mark.parametrize("path", ["id_rsa", "account/../id_rsa", "account/link", "account-of-others", "none"])
async def test_no_other_file_of_the_machine_is_sent(stand_in: StandIn, mounted: Path, path: str) -> None:
    """Whoever may edit a block must not be able to send a file of the worker to a host of their choice."""
    (mounted / "link").symlink_to(mounted.parent / "id_rsa")
    (mounted.parent / "account-of-others").write_text("a secret of this machine")
    secret = stand_in.secret(KubernetesAuth(kubernetes_role="role", token_path=str(mounted.parent / path)))

    with pytest.raises(ConfigurationError, match=rf"auth\.token_path: the file is not in .*{FOLDERS_SETTING}"):
        await secret.read_content()

    assert stand_in.requests == []


@pytest.mark.parametrize("named", ["", ".", "account"])
async def test_only_whole_paths_in_the_setting_count(
    stand_in: StandIn, mounted: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """An empty or relative path would depend on the worker's working directory."""
    monkeypatch.chdir(mounted.parent)
    monkeypatch.setenv(FOLDERS_SETTING, named)
    secret = stand_in.secret(KubernetesAuth(kubernetes_role="role", token_path="account/token"))

    with pytest.raises(ConfigurationError, match=r"auth\.token_path: the file is not in"):
        await secret.read_content()


async def test_a_namespace_is_sent_along(stand_in: StandIn) -> None:
    """A secret is written in the credentials' namespace only."""
    stand_in.sandbox.mount("secret", namespace="team/a")
    secret = stand_in.secret(namespace="/team/a/")

    await secret.write_content(KEY, await secret.read_content(), {})

    assert (await stand_in.secret().read_content()).value is None
    assert (await secret.read_content()).value == KEY
    await secret.aclose()


async def test_no_token_is_taken_from_the_environment(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library would use VAULT_TOKEN, which must not replace the configured login."""
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)
    secret = stand_in.secret(AppRoleAuth(role_id="nobody", secret_id="nothing"))

    with pytest.raises(UnauthorizedError, match="refused the login"):
        await secret.read_content()
