"""Generated answers that contain keys: no message, log or repr of a client repeats any of them."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable, Iterable
from copy import deepcopy
from typing import Any
from unittest import mock

import httpx
import pytest
import requests
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from requests.adapters import HTTPAdapter

from blocks import InfisicalCredentials, InfisicalSecret, OpenRouterCredentials, VaultCredentials, VaultSecret
from blocks.destination import DestinationBlock
from blocks.errors import KeyRotationError
from blocks.infisical.client import InfisicalClient
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.keys import KeyRequest
from blocks.openrouter.lists import KeyList, ListKind
from blocks.vault.auth import AppRoleAuth
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from tests.blocks.vault.vaults import at_once
from tests.hostile.calls import LABELS, NOW
from tests.hostile.judging import shown
from tests.hostile.liar import KEY, listening

pytestmark = pytest.mark.slow

SECRETS = (KEY, DEFAULT_MANAGEMENT_KEY)
STATUSES = [*[200] * 9, 201, 302, 400, 401, 402, 403, 404, 409, 422, 429, 500, 503]
ERRORS: list[Any] = [{"error": {"code": 403, "message": "no"}, "errors": ["no"], "message": "no", "statusCode": 400}]
OF_OPENROUTER = [
    {
        "data": {
            "hash": "f01d", "name": "checkout", "label": "sk-or-v1-the...key", "disabled": False, "limit": 5,
            "limit_reset": "monthly", "include_byok_in_limit": False, "usage": 0, "created_at": "2026-12-01T03:30:00Z",
            "creator_user_id": "user", "workspace_id": "default",
        },
        "key": "sk-or-v1-something",
    },
    {"data": [{"id": "default", "key_hash": "f01d", "guardrail_id": "one"}], "total_count": 1},
    {"assigned_count": 0, "unassigned_count": 1, "deleted": True},
    *ERRORS,
]  # fmt: skip
OF_INFISICAL = [{"secret": {"secretValue": "old", "version": 1}, "accessToken": "token", "expiresIn": 60}, *ERRORS]
OF_VAULT = [
    {"data": {"data": {"value": "old"}, "metadata": {"version": 1}}, "capabilities": ["read"]},
    {"data": {"version": 2, "current_version": 2, "versions": {"1": {"destroyed": False}}, "path": "secret/"}},
    {"auth": {"client_token": "token", "lease_duration": 60}},
    *ERRORS,
]
"""Answers in the formats of the services."""
FIELDS = sorted(
    {name for template in [*OF_OPENROUTER, *OF_INFISICAL, *OF_VAULT] for name in template}
    | {"hash", "label", "value", "metadata"}
)

with_a_secret = st.builds("{}{}{}".format, st.text(max_size=5), st.sampled_from(SECRETS), st.text(max_size=5))
leaves = st.one_of(with_a_secret, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
shapes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS), with_a_secret), inner, max_size=4),
    ),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inside for place in [(*path, key), *places(one, (*path, key))]]


def at(value: Any, path: Iterable[Any]) -> Any:
    """Return the value at a path in a JSON value."""
    for key in path:
        value = value[key]
    return value


@st.composite
def almost_right(draw: st.DrawFn, templates: list[Any]) -> Any:
    """Draw a correct response with one to three values replaced."""
    answer = deepcopy(draw(st.sampled_from(templates)))
    leaves_of = [place for place in places(answer) if not isinstance(at(answer, place), dict | list)]
    for *path, last in draw(st.lists(st.sampled_from(leaves_of), min_size=1, max_size=3)):
        at(answer, path)[last] = draw(st.one_of(with_a_secret, shapes))
    return answer


@st.composite
def bodies(draw: st.DrawFn, templates: list[Any]) -> bytes:
    """Draw JSON of any shape, complete or truncated, or bytes around a secret."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=20)) + draw(st.sampled_from(SECRETS)).encode() + draw(st.binary(max_size=20))
    text = json.dumps(draw(st.one_of(almost_right(templates), shapes))).encode()
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 4)) == 0 else text


async def _hashes(client: OpenRouterClient) -> list[str]:
    return [key.hash async for key in client.list_keys()]


OPENROUTER: dict[str, Callable[[OpenRouterClient], Awaitable[Any]]] = {
    "create_key": lambda c: c.create_key(KeyRequest(name="checkout")),
    "get_key": lambda c: c.get_key("f01d"),
    "list_keys": _hashes,
    "update_key": lambda c: c.update_key("f01d", disabled=True),
    "delete_key": lambda c: c.delete_key("f01d"),
    "workspace": lambda c: c.workspace("default"),
    "key_list": lambda c: c.key_list(ListKind.BYOK, "one"),
    "replace_keys": lambda c: c.replace_keys(KeyList(ListKind.BYOK, "one", "one", ()), ["f01d"]),
    "uses_of": lambda c: c.uses_of("f01d", NOW, NOW),
    "assign_guardrail": lambda c: c.assign_guardrail("one", "f01d"),
    "unassign_guardrail": lambda c: c.unassign_guardrail("one", "f01d"),
    "about_itself": lambda c: c.about_itself(),
    "accepts": lambda c: c.accepts(SecretStr(KEY)),
    "check": lambda c: c.check(),
}


async def _written(block: DestinationBlock) -> None:
    await block.write_content(SecretStr(KEY), await block.read_content(), LABELS)


async def _fenced(block: DestinationBlock) -> Any:
    return await block.fence(await block.read_content())


BLOCKS: dict[str, Callable[[DestinationBlock], Awaitable[Any]]] = {
    "read_content": lambda block: block.read_content(),
    "write_content": _written,
    "fence": _fenced,
    "read_older": lambda block: block.read_older(lambda _value: True),
    "check": lambda block: block.check(),
}


async def said_about(call: Awaitable[Any]) -> str:
    """Return everything that anybody can see of a call: its result or its error, and its log."""
    with (
        listening() as ear,
        mock.patch("blocks.http.MAX_ATTEMPTS", 1),
        mock.patch("blocks.paging.MAX_PAGES", 3),
    ):
        try:
            result: Any = await call
        except KeyRotationError as error:
            result = error
    return shown(result) + ear.text


def leaked(text: str) -> list[str]:
    """Return the secrets in a text."""
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("name", OPENROUTER)
@given(status=st.sampled_from(STATUSES), body=bodies(OF_OPENROUTER))
@settings(deadline=None, max_examples=60)
async def test_no_answer_of_openrouter_is_quoted(name: str, status: int, body: bytes) -> None:
    """Each call returns or raises a `KeyRotationError`, without quoting a key."""
    credentials = OpenRouterCredentials(management_key=DEFAULT_MANAGEMENT_KEY)
    transport = httpx.MockTransport(lambda _request: httpx.Response(status, content=body))

    async with credentials.get_client(transport=transport, sleep=at_once) as client:
        assert leaked(await said_about(OPENROUTER[name](client))) == []


@pytest.mark.parametrize("at_login", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
@given(status=st.sampled_from(STATUSES), body=bodies(OF_INFISICAL))
@settings(deadline=None, max_examples=30)
async def test_no_answer_of_infisical_is_quoted(name: str, at_login: bool, status: int, body: bytes) -> None:
    """Each call returns or raises a `KeyRotationError`, without quoting a key."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/login") and not at_login:
            return httpx.Response(200, json={"accessToken": "token", "expiresIn": 60})
        return httpx.Response(status, content=body)

    credentials = InfisicalCredentials(host="https://infisical.example", client_id="id", client_secret="secret")
    transport = httpx.MockTransport(answer)
    credentials._client = InfisicalClient(
        credentials.host, "id", SecretStr("secret"), transport=transport, sleep=at_once
    )
    block = InfisicalSecret(credentials=credentials, project_id="project", environment="prod", name="KEY")

    assert leaked(await said_about(BLOCKS[name](block))) == []


@pytest.mark.parametrize("at_login", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
@given(status=st.sampled_from(STATUSES), body=bodies(OF_VAULT))
@settings(deadline=None, max_examples=30)
async def test_no_answer_of_vault_is_quoted(name: str, at_login: bool, status: int, body: bytes) -> None:
    """Each call returns or raises a `KeyRotationError`, without quoting a key."""

    def answer(adapter: HTTPAdapter, request: requests.PreparedRequest, **_how: Any) -> requests.Response:
        if str(request.url).endswith("/login") and not at_login:
            text = json.dumps({"auth": {"client_token": "token"}}).encode()
            return adapter.build_response(request, urllib3.HTTPResponse(io.BytesIO(text), preload_content=False))
        raw = urllib3.HTTPResponse(io.BytesIO(body), status=status, preload_content=False)
        return adapter.build_response(request, raw)

    credentials = VaultCredentials(url="https://vault.example", auth=AppRoleAuth(role_id="r", secret_id="s"))
    credentials._sleep = at_once
    block = VaultSecret(credentials=credentials, path="app")

    with mock.patch.object(HTTPAdapter, "send", answer):
        assert leaked(await said_about(BLOCKS[name](block))) == []
    await block.aclose()
