"""Every call of every client, made against stand-ins that return wrong responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from blocks import InfisicalCredentials, InfisicalSecret, OpenRouterCredentials, VaultCredentials, VaultSecret
from blocks.destination import Content
from blocks.errors import NotFoundError, UnauthorizedError, UnexpectedAnswerError
from blocks.infisical.client import InfisicalClient
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.keys import KeyRequest, Standing
from blocks.openrouter.lists import KeyList, ListKind
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from sandbox import infisical
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, StoredKey
from sandbox.vault_tokens import ROOT_TOKEN
from tests.blocks.vault.vaults import at_once
from tests.hostile.liar import ANSWERS, KEY, SECRET_ID, Liar, Service

MANAGEMENT_KEY = DEFAULT_MANAGEMENT_KEY
LABELS = {"key_rotation": "checkout"}
LOGINS = ("approle", "kubernetes", "jwt")
"""The login methods of Vault that send a request; a token is used directly."""
GUARDRAIL = "0b0e3c5e-1f3a-4d0b-9b59-2f8f3f3f5c11"
CREDENTIAL = "11111111-2222-3333-4444-555555555555"


@dataclass
class Liars:
    """The three stand-ins, each behind a `Liar`, with clients for them."""

    liars: dict[Service, Liar]
    urls: dict[Service, str]
    key: StoredKey
    workspace: str
    jwt_file: str = ""
    deadline: float | None = None

    def openrouter(self) -> OpenRouterClient:
        """Return a client that does not wait between retries."""
        credentials = OpenRouterCredentials(management_key=MANAGEMENT_KEY, base_url=f"{self.urls['OpenRouter']}/api/v1")
        return credentials.get_client(sleep=at_once)

    def vault(self, path: str = "app", login: str = "token") -> VaultSecret:
        """Return a secret in Vault."""
        auth = self.logins()[login]
        third = self.deadline and self.deadline / 3
        timeouts = {"connect_timeout_seconds": third, "read_timeout_seconds": third} if third else {}
        credentials = VaultCredentials(url=self.urls["Vault"], auth=auth, **timeouts)
        credentials._sleep = at_once
        return VaultSecret(credentials=credentials, path=path)

    def logins(self) -> dict[str, Any]:
        """Return each login method of Vault."""
        return {
            "token": TokenAuth(token=SecretStr(ROOT_TOKEN)),
            "approle": AppRoleAuth(role_id="role", secret_id=SecretStr(SECRET_ID)),
            "kubernetes": KubernetesAuth(kubernetes_role="role", token_path=self.jwt_file),
            "jwt": JwtAuth(jwt_role="role", jwt=SecretStr(SECRET_ID)),
        }

    def infisical(self, name: str = "PRESENT") -> InfisicalSecret:
        """Return a secret in Infisical."""
        host, secret = self.urls["Infisical"], infisical.CLIENT_SECRET
        credentials = InfisicalCredentials(host=host, client_id=infisical.CLIENT_ID, client_secret=secret)
        credentials._client = InfisicalClient(host, infisical.CLIENT_ID, SecretStr(secret), sleep=at_once)
        return InfisicalSecret(credentials=credentials, project_id=infisical.PROJECT_ID, environment="prod", name=name)


@dataclass(frozen=True)
class Call:
    """A call of a client.

    Args:
        service: The service.
        method: The method of the requests that get a wrong response; a regular expression.
        path: The path of these requests; a regular expression.
        make: Makes the call.
        otherwise: The results that differ from the usual ones, by the name of the response: an error class, or a value.
    """

    service: Service
    method: str
    path: str
    make: Callable[[Liars, AsyncExitStack], Awaitable[Any]]
    otherwise: dict[str, Any]


def _openrouter(
    method: str, path: str, call: Callable[[OpenRouterClient, Liars], Awaitable[Any]], **otherwise: Any
) -> Call:
    async def make(liars: Liars, stack: AsyncExitStack) -> Any:
        return await call(await stack.enter_async_context(liars.openrouter()), liars)

    proxies = dict.fromkeys(("402 of a proxy", "403 of a proxy", "404 of a proxy", "404 in other JSON"))
    own = dict.fromkeys(proxies, UnexpectedAnswerError)
    return Call("OpenRouter", method, path, make, {**own, **_spelled(otherwise)})


def _vault(
    method: str,
    path: str,
    call: Callable[[VaultSecret], Awaitable[Any]],
    *,
    secret: str = "app",
    login: str = "token",
    **otherwise: Any,
) -> Call:
    async def make(liars: Liars, stack: AsyncExitStack) -> Any:
        block = liars.vault(secret, login)
        stack.push_async_callback(block.aclose)
        return await call(block)

    own = dict.fromkeys(("404 of a proxy", "404 in other JSON"), UnexpectedAnswerError)
    return Call("Vault", method, path, make, {**own, **_spelled(otherwise)})


def _infisical(
    method: str, path: str, call: Callable[[InfisicalSecret], Awaitable[Any]], name: str = "PRESENT", **otherwise: Any
) -> Call:
    async def make(liars: Liars, stack: AsyncExitStack) -> Any:
        block = liars.infisical(name)
        stack.push_async_callback(block.aclose)
        return await call(block)

    return Call("Infisical", method, path, make, _spelled(otherwise))


def _spelled(otherwise: dict[str, Any]) -> dict[str, Any]:
    """Convert keyword arguments to names of responses: underscores become spaces, and a leading one is removed."""
    return {name.lstrip("_").replace("_", " "): value for name, value in otherwise.items()}


async def _listed(client: OpenRouterClient) -> list[str]:
    keys: AsyncIterator[Any] = client.list_keys()
    return [key.hash async for key in keys]


async def _walked(walk: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in walk]


async def _written(block: VaultSecret | InfisicalSecret) -> None:
    held = await block.read_content()
    await block.write_content(SecretStr(KEY), held, LABELS)


ANY = ".*"
LISTED = KeyList(ListKind.BYOK, CREDENTIAL, "production", ())
NOW = datetime(2026, 12, 1, tzinfo=UTC)
IS_OLD, ABSENT = "a secret", "nothing"
NO_ENGINE: dict[str, Any] = dict.fromkeys(
    ["another_shape", "another_shape_inside", "other_types", "lists", "an_object_in_vain", "empty",
     "a_number_beyond_all_numbers"],
    NotFoundError,
)  # fmt: skip
REFUSED_LOGIN: dict[str, Any] = dict.fromkeys(
    ["_402", "_403", "_404", "_422", "402_of_a_proxy", "403_of_a_proxy"], UnauthorizedError
)
REFUSED_TOKEN: dict[str, Any] = dict.fromkeys(["_403", "_403_of_a_proxy"], UnauthorizedError)
WRITTEN_ANYWAY: dict[str, Any] = {name.replace(" ", "_"): None for name in ANSWERS}
CALLS: dict[str, Call] = {
    "create_key": _openrouter("POST", "/keys$", lambda c, _: c.create_key(KeyRequest(name="checkout"))),
    "get_key": _openrouter("GET", "/keys/", lambda c, liars: c.get_key(liars.key.hash)),
    "list_keys": _openrouter("GET", "/keys$", lambda c, _: _listed(c)),
    "update_key": _openrouter("PATCH", "/keys/", lambda c, liars: c.update_key(liars.key.hash, disabled=True)),
    "delete_key": _openrouter("DELETE", "/keys/", lambda c, liars: c.delete_key(liars.key.hash), _404=False),
    "workspace": _openrouter("GET", "/workspaces/", lambda c, liars: c.workspace(liars.workspace)),
    "key_lists": _openrouter("GET", "/byok$", lambda c, _: _walked(c.key_lists(ListKind.BYOK))),
    "key_list": _openrouter("GET", "/byok/", lambda c, _: c.key_list(ListKind.BYOK, CREDENTIAL)),
    "replace_keys": _openrouter("PATCH", "/byok/", lambda c, liars: c.replace_keys(LISTED, [liars.key.hash])),
    "peek": _openrouter("GET", "/byok$", lambda c, _: c.peek("byok"), lists=True, another_shape_inside=True),
    "uses_of": _openrouter("GET", "/analytics/meta$", lambda c, liars: c.uses_of(liars.key.hash, NOW, NOW)),
    "list_workspaces": _openrouter("GET", "/workspaces$", lambda c, _: _walked(c.list_workspaces())),
    "assign_guardrail": _openrouter("POST", "/keys$", lambda c, liars: c.assign_guardrail(GUARDRAIL, liars.key.hash)),
    "unassign_guardrail": _openrouter(
        "POST", "/remove$", lambda c, liars: c.unassign_guardrail(GUARDRAIL, liars.key.hash)
    ),
    "guardrail_of": _openrouter("GET", "/assignments/keys$", lambda c, liars: c.guardrail_of(liars.key.hash)),
    "about_itself": _openrouter("GET", "/key$", lambda c, _: c.about_itself()),
    "login_ends": _openrouter("GET", "/key$", lambda c, _: c.login_ends()),
    "current_key": _openrouter("GET", "/key$", lambda c, _: c.current_key(SecretStr(KEY))),
    "accepts": _openrouter(
        "GET",
        "/key$",
        lambda c, _: c.accepts(SecretStr(KEY)),
        _401=Standing.REFUSED,
        _402=Standing.NO_BUDGET,
        _403=Standing.NO_BUDGET,
        _401_of_a_proxy=Standing.REFUSED,
    ),
    "check": _openrouter("GET", "/keys?$", lambda c, _: c.check(), lists=str),
    "Vault read_content": _vault(
        "GET", "/data/", lambda block: block.read_content(), another_shape_inside=NotFoundError
    ),
    "Vault read_content, the engine": _vault(
        "GET",
        "/mounts/",
        lambda block: block.read_content(),
        secret="absent",
        **NO_ENGINE,
        **dict.fromkeys(["_402", "_403", "_404", "_422", "402_of_a_proxy", "403_of_a_proxy"], ABSENT),
    ),
    "Vault write_content": _vault("POST", "/data/", _written),
    "Vault write_content, the labels": _vault(ANY, "/metadata/", _written, **WRITTEN_ANYWAY),
    "Vault read_older, the versions": _vault("GET", "/metadata/", lambda block: block.read_older(lambda _value: True)),
    "Vault read_older, a version": _vault(
        "GET", "/data/", lambda block: block.read_older(lambda _value: True), another_shape_inside=NotFoundError
    ),
    "Vault fence": _vault("POST", "/data/", lambda block: _fenced(block)),  # noqa: PLW0108 - it is defined below
    "Vault check": _vault("POST", "/capabilities-self", lambda block: block.check(), _403=str, _403_of_a_proxy=str),
    "Vault credentials check": _vault(
        "GET",
        "/lookup-self",
        lambda block: block.credentials.check(),
        another_shape_inside=str,
        **REFUSED_TOKEN,
    ),
    "Vault credentials login_ends": _vault(
        "GET",
        "/lookup-self",
        lambda block: block.credentials.login_ends(),
        another_shape_inside=None,
        **REFUSED_TOKEN,
    ),
    "Vault login_ends": _vault(
        "GET",
        "/lookup-self",
        lambda block: block.login_ends(),
        another_shape_inside=None,
        **REFUSED_TOKEN,
    ),
    **{
        f"Vault login, {login}": _vault(
            "POST", f"/{login}/login", lambda block: block.read_content(), login=login, **REFUSED_LOGIN
        )
        for login in LOGINS
    },
    "Infisical read_content": _infisical("GET", "/raw/", lambda block: block.read_content()),
    "Infisical write_content, a change": _infisical(
        "PATCH", "/raw/", _written, another_shape_inside=None, other_types=None, lists=None
    ),
    "Infisical write_content, a new one": _infisical(
        "POST", "/raw/", _written, "ABSENT", another_shape_inside=None, other_types=None, lists=None
    ),
    "Infisical check": _infisical("GET", "/raw/", lambda block: block.check()),
    "Infisical login": _infisical("POST", "/login", lambda block: block.read_content()),
    "Infisical credentials check": _infisical("POST", "/login", lambda block: block.credentials.check()),
}
"""Every call of every client."""


async def _fenced(block: VaultSecret) -> Content:
    return await block.fence(await block.read_content())


async def outcome(call: Call, liars: Liars) -> Any:
    """Make a call, and return its result or its error."""
    async with AsyncExitStack() as stack:
        try:
            return await call.make(liars, stack)
        except Exception as error:  # noqa: BLE001 - the test looks for errors of any other class
            return error
