"""The input for Vault, and how the dashboard and Prefect treat it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from blocks import VaultCredentials, VaultSecret
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from blocks.vault.secret import VaultContent

URL = "https://vault.example.com:8200"


def credentials(**fields: Any) -> VaultCredentials:
    """Return credentials, with a token by default."""
    return VaultCredentials(**{"url": URL, "auth": {"token": "hvs.token"}, **fields})


@pytest.mark.parametrize(
    ("filled_in", "login"),
    [
        ({"token": "hvs.t"}, TokenAuth),
        ({"role_id": "r", "secret_id": "s"}, AppRoleAuth),
        ({"kubernetes_role": "r"}, KubernetesAuth),
        ({"jwt_role": "r", "jwt": "j"}, JwtAuth),
    ],
)
def test_the_login_follows_from_what_is_filled_in(filled_in: dict[str, str], login: type) -> None:
    """The required fields determine the login method, without naming it."""
    made = credentials(auth=filled_in).auth

    assert type(made) is login


@pytest.mark.parametrize(
    ("auth", "where"),
    [
        (TokenAuth(token="t"), None),
        (AppRoleAuth(role_id="r", secret_id="s"), "auth/approle"),
        (KubernetesAuth(kubernetes_role="r"), "auth/kubernetes"),
        (JwtAuth(jwt_role="r", jwt="j", mount="/team/oidc/"), "auth/team/oidc"),
    ],
)
def test_each_login_has_its_own_mount(auth: Any, where: str | None) -> None:
    """The default mounts are Vault's own, and a token needs none."""
    assert auth.where == where


@pytest.mark.parametrize("filled_in", [{}, {"token": "t", "role_id": "r"}, {"role_id": "r"}, {"token": ""}])
def test_a_login_that_is_none_is_refused(filled_in: dict[str, str]) -> None:
    """Half a login, two at once or an empty one is refused."""
    with pytest.raises(ValidationError):
        credentials(auth=filled_in)


@pytest.mark.parametrize(
    "fields",
    [
        {"auth": {"token": "hvs.canary\nX-Evil: 1"}},
        {"auth": {"token": "hvs.canary", "surplus": "hvs.canary"}},
        {"auth": {"role_id": "r", "secret_id": "hvs.canary", "surplus": 1}},
        {"url": "http://user:hvs.canary@vault.example.com"},
    ],
)
def test_a_refused_value_is_not_quoted(fields: dict[str, Any]) -> None:
    """The error must not repeat a value that was typed into the wrong field."""
    with pytest.raises(ValidationError) as refused:
        credentials(**fields)

    assert "canary" not in str(refused.value)


def test_secrets_are_hidden_when_shown() -> None:
    """The string forms of a block and of its parts contain no secret."""
    block = VaultSecret(credentials=credentials(), path="app")
    held = VaultContent(SecretStr("sk-canary"), 1)

    assert "hvs.token" not in repr(block) + str(block)
    assert "sk-canary" not in repr(held)


@pytest.mark.parametrize("field", ["auth.token", "auth.secret_id", "auth.jwt"])
def test_prefect_knows_the_secret_fields_of_every_login(field: str) -> None:
    """Prefect masks the fields that the schema declares as secrets; each login's secret must be one."""
    named = VaultCredentials.model_json_schema()["secret_fields"]

    assert field in named or "auth.*" in named


def test_each_login_has_a_title_for_its_tab() -> None:
    """The form has a tab for each login, titled with its usual name."""
    schema = VaultCredentials.model_json_schema()

    titles = [
        schema["definitions" if "definitions" in schema else "$defs"][name]["title"] for name in _variants(schema)
    ]
    assert titles == ["Token", "AppRole", "Kubernetes", "JWT"]


def _variants(schema: dict[str, Any]) -> list[str]:
    return [variant["$ref"].rsplit("/", 1)[1] for variant in schema["properties"]["auth"]["anyOf"]]


@pytest.mark.parametrize("field", ["mount", "path"])
@pytest.mark.parametrize("value", ["", "/", "a//b", ".", "a/../b", "a/.", "a\nb", "a\x7fb", "\ud800", "x" * 513])
def test_a_place_that_leads_elsewhere_is_refused_by_name(field: str, value: str) -> None:
    """A segment that Vault or a proxy could interpret otherwise is refused by the field's name."""
    with pytest.raises(ValidationError, match=f"{field} must be names"):
        VaultSecret(credentials=credentials(), **{"path": "app", field: value})


@pytest.mark.parametrize("value", ["", " ", "a\nb", "x" * 257])
def test_a_field_needs_a_name(value: str) -> None:
    """A field without a name, or with control characters, is refused."""
    with pytest.raises(ValidationError, match="field must be a name"):
        VaultSecret(credentials=credentials(), path="app", field=value)


def test_slashes_around_a_place_do_not_matter() -> None:
    """People write mounts and paths with surrounding slashes."""
    secret = VaultSecret(credentials=credentials(), mount="/kv/", path="/team/app/")

    assert (secret.mount, secret.path) == ("kv", "team/app")


@pytest.mark.parametrize("value", ["team a", "täm", "a//b", "a\r\nX-Vault-Token: b"])
def test_a_namespace_is_fit_for_a_header(value: str) -> None:
    """A namespace that a header cannot carry is refused by the field's name."""
    with pytest.raises(ValidationError, match="namespace must be"):
        credentials(namespace=value)


@pytest.mark.parametrize("field", ["namespace", "ca_certificate"])
def test_an_empty_text_means_none(field: str) -> None:
    """A form sends an empty text for an empty field."""
    made = credentials(**{field: " "})

    assert getattr(made, field) is None


@pytest.mark.parametrize("value", ["text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_a_certificate_that_is_none_is_refused(value: str) -> None:
    """It is refused when it is entered, and not only when Vault is used."""
    with pytest.raises(ValidationError, match="ca_certificate must be"):
        credentials(ca_certificate=value)
