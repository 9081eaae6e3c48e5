"""What may be filled in for Vault, and what the dashboard and Prefect make of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from blocks import VaultCredentials, VaultSecret
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from blocks.vault.secret import VaultContent

URL = "https://vault.example.com:8200"


def credentials(**fields: Any) -> VaultCredentials:
    """Credentials with a token, where the test does not say otherwise."""
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
    """Each way to log in is told by its required fields, without naming it."""
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
    """The mounts default to Vault's own names, and a token needs none."""
    assert auth.where == where


@pytest.mark.parametrize("filled_in", [{}, {"token": "t", "role_id": "r"}, {"role_id": "r"}, {"token": ""}])
def test_a_login_that_is_none_is_refused(filled_in: dict[str, str]) -> None:
    """Half a login, two at once or an empty one is not accepted."""
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
    """What a person typed wrongly into a form does not come back in the error's text."""
    with pytest.raises(ValidationError) as refused:
        credentials(**fields)

    assert "canary" not in str(refused.value)


def test_secrets_are_hidden_when_shown() -> None:
    """Neither a block nor what it holds shows a secret."""
    block = VaultSecret(credentials=credentials(), path="app")
    held = VaultContent(SecretStr("sk-canary"), 1)

    assert "hvs.token" not in repr(block) + str(block)
    assert "sk-canary" not in repr(held)


@pytest.mark.parametrize("field", ["auth.token", "auth.secret_id", "auth.jwt"])
def test_prefect_knows_the_secret_fields_of_every_login(field: str) -> None:
    """Prefect masks what the schema calls secret; every login's secret is among it."""
    named = VaultCredentials.model_json_schema()["secret_fields"]

    assert field in named or "auth.*" in named


def test_each_login_has_a_title_for_its_tab() -> None:
    """The form shows one tab a login, named as people call it."""
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
    """A segment that Vault or a proxy could read otherwise is refused, and the field is named."""
    with pytest.raises(ValidationError, match=f"{field} must be names"):
        VaultSecret(credentials=credentials(), **{"path": "app", field: value})


@pytest.mark.parametrize("value", ["", " ", "a\nb", "x" * 257])
def test_a_field_needs_a_name(value: str) -> None:
    """A field without a name, or with control characters, is refused."""
    with pytest.raises(ValidationError, match="field must be a name"):
        VaultSecret(credentials=credentials(), path="app", field=value)


def test_slashes_around_a_place_do_not_matter() -> None:
    """People write mounts and paths with slashes around them."""
    secret = VaultSecret(credentials=credentials(), mount="/kv/", path="/team/app/")

    assert (secret.mount, secret.path) == ("kv", "team/app")


@pytest.mark.parametrize("value", ["team a", "täm", "a//b", "a\r\nX-Vault-Token: b"])
def test_a_namespace_is_fit_for_a_header(value: str) -> None:
    """A namespace that cannot be sent is refused by name."""
    with pytest.raises(ValidationError, match="namespace must be"):
        credentials(namespace=value)


@pytest.mark.parametrize("field", ["namespace", "ca_certificate"])
def test_an_empty_text_means_none(field: str) -> None:
    """A form sends an empty text for what was left empty."""
    made = credentials(**{field: " "})

    assert getattr(made, field) is None


@pytest.mark.parametrize("value", ["text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_a_certificate_that_is_none_is_refused(value: str) -> None:
    """What is not a certificate is refused when it is filled in, not when Vault is needed."""
    with pytest.raises(ValidationError, match="ca_certificate must be"):
        credentials(ca_certificate=value)
