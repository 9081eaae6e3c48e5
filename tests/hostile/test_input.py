"""Any input is either refused in one sentence that names the field, or used exactly as it was entered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import assume, example, given, settings
from pydantic import BaseModel

from blocks import InfisicalCredentials, OpenRouterCredentials, VaultCredentials
from blocks.errors import ConfigurationError, NotFoundError, RejectedError
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.lists import ListKind
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from sandbox import openrouter
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from tasks.model.keys import Marker, read_marker
from tasks.model.rotation import MAX_KEY_NAME, KeySettings, Retirement, Rotation, parse_rotation
from tests.hostile.liar import KEY, listening
from tests.hostile.typed import CANARY, make, typed

RUN = UUID(int=7)
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def is_plain(text: str) -> bool:
    """Return whether a message is one short line."""
    return text.isprintable() and text.endswith(".") and len(text) < 400


# --- a rotation ---


def filled_in(field: str, value: Any) -> dict[str, Any]:
    """Return a rotation with a value in one field, given by its dotted name."""
    rotation: dict[str, Any] = {
        "name": "checkout",
        "connection": "openrouter",
        "key": {"name": "checkout"},
        "destinations": ["secret/checkout"],
    }
    *path, last = field.split(".")
    place = rotation.setdefault(path[0], {}) if path else rotation
    place[last] = [value] if last == "destinations" else value
    return rotation


GROUPS: dict[str, type[BaseModel]] = {"key": KeySettings, "retirement": Retirement}
FIELDS = [name for name in Rotation.model_fields if name not in GROUPS] + [
    f"{group}.{name}" for group, model in GROUPS.items() for name in model.model_fields
]
"""Every field that a person can fill in."""


@pytest.mark.parametrize("field", FIELDS)
@given(value=typed)
@settings(deadline=None)
def test_a_rotations_field_is_refused_by_name_or_makes_a_key_that_is_found_again(field: str, value: str) -> None:
    """A refusal names the field on one line and quotes nothing; an accepted value leads back to rotation and run."""
    refused: list[ConfigurationError] = []
    try:
        rotation = parse_rotation(filled_in(field, value + CANARY))
    except ConfigurationError as error:
        refused.append(error)

    for refusal in refused:
        assert str(refusal).startswith(("rotation." + field, "rotation: key.name"))
        assert is_plain(str(refusal))
        assert CANARY not in str(refusal)
        assert refusal.__suppress_context__
    if not refused:
        name = rotation.key_name(RUN, NOW, "abcdefg")
        assert name.isprintable()
        assert len(name) <= MAX_KEY_NAME
        assert read_marker(name) == Marker(rotation.name, RUN, "abcdefg")


@given(value=typed)
@settings(deadline=None)
@example(value=KEY)
def test_a_field_that_does_not_exist_is_refused_on_one_line(value: str) -> None:
    """An unknown field name does not break the message, and a key pasted in its place is not shown."""
    assume(value not in Rotation.model_fields)

    with pytest.raises(ConfigurationError) as refused:
        parse_rotation({**filled_in("name", "checkout"), value: CANARY})

    assert is_plain(str(refused.value))
    assert CANARY not in str(refused.value)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("value", [None, 7, [], "checkout", {"key": []}, {"name": {}}, {"overlap": float("inf")}])
def test_what_is_no_rotation_at_all_is_refused_on_one_line(value: Any) -> None:
    """A parameter of another type leads to a configuration error like any other."""
    with pytest.raises(ConfigurationError, match=r"^rotation") as refused:
        parse_rotation(value)

    assert is_plain(str(refused.value))


@pytest.mark.parametrize(
    ("field", "value"),
    [("overlap", "P999999999D"), ("overlap", "P3651D"), ("key.limit_usd", 1e300), ("key.limit_usd", "0.12345678901")],
)
def test_what_would_fail_after_the_key_was_made_is_refused_before(field: str, value: Any) -> None:
    """An overlap beyond the calendar, or an amount that JSON cannot express, is refused before a key is created."""
    with pytest.raises(ConfigurationError, match=rf"^rotation\.{field}: .* Nothing was created\.$"):
        parse_rotation(filled_in(field, value))


@given(value=typed)
@settings(max_examples=40, deadline=None)
async def test_a_keys_name_reaches_openrouter_as_it_was_typed(value: str) -> None:
    """The stand-in stores the key under exactly the requested name."""
    try:
        rotation = parse_rotation(filled_in("key.name", value))
    except ConfigurationError:
        return
    sandbox = OpenRouterSandbox()
    request = rotation.key.terms(NOW).request(rotation.key_name(RUN, NOW))

    async with connected(sandbox) as client:
        await client.create_key(request)

    assert [key.name for key in sandbox.live_keys()] == [request.name]
    assert value.strip() in request.name


# --- OpenRouter ---


def connected(sandbox: OpenRouterSandbox, seen: list[httpx.Request] | None = None) -> OpenRouterClient:
    """Return a client of a stand-in in this process, which records its requests."""

    class Seen(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if seen is not None:
                seen.append(request)
            return await super().handle_async_request(request)

    credentials = OpenRouterCredentials(management_key=DEFAULT_MANAGEMENT_KEY)
    return credentials.get_client(transport=Seen(openrouter.create_app(sandbox)))


GUARDED = "/api/v1/guardrails/{}/assignments/keys"
IN_PATHS: dict[str, tuple[str, Callable[[OpenRouterClient, str], Awaitable[Any]]]] = {
    "get_key": ("/api/v1/keys/{}", lambda client, value: client.get_key(value)),
    "update_key": ("/api/v1/keys/{}", lambda client, value: client.update_key(value, disabled=True)),
    "delete_key": ("/api/v1/keys/{}", lambda client, value: client.delete_key(value)),
    "workspace": ("/api/v1/workspaces/{}", lambda client, value: client.workspace(value)),
    "key_list": ("/api/v1/byok/{}", lambda client, value: client.key_list(ListKind.BYOK, value)),
    "assign_guardrail": (GUARDED, lambda client, value: client.assign_guardrail(value, "f01d")),
    "unassign_guardrail": (f"{GUARDED}/remove", lambda client, value: client.unassign_guardrail(value, "f01d")),
}
"""The path in which each call puts a value, and the call."""


@pytest.mark.parametrize("call", IN_PATHS)
@given(value=typed)
@settings(deadline=None)
async def test_what_becomes_part_of_a_path_stays_one_segment(call: str, value: str) -> None:
    """A hash, workspace or guardrail leads to its own path or to no request, but never to another path or a query."""
    seen: list[httpx.Request] = []
    path, ask = IN_PATHS[call]
    before, after = path.encode().split(b"{}")

    async with connected(OpenRouterSandbox(), seen) as client:
        with suppress(NotFoundError, ConfigurationError):
            assert await ask(client, value) is False

    for request in seen:
        raw = request.url.raw_path
        assert raw.startswith(before)
        assert raw.endswith(after)
        segment = raw.removeprefix(before).removesuffix(after)
        assert not set(segment) & set(b"/?#\\\r\n\x00 ")
        assert segment not in {b"", b".", b".."}
        assert request.url.path == path.format(value)


async def _hashes(client: OpenRouterClient, workspace: str) -> list[str]:
    return [key.hash async for key in client.list_keys(workspace)]


@given(value=typed)
@settings(deadline=None)
async def test_what_is_asked_for_in_a_query_or_a_body_stays_one_value(value: str) -> None:
    """As a workspace filter, or as the key of a guardrail, the value changes nothing else in the request."""
    seen: list[httpx.Request] = []

    async with connected(OpenRouterSandbox(), seen) as client:
        for call in (
            _hashes(client, value),
            client.assign_guardrail("guardrail", value),
            client.unassign_guardrail("guardrail", value),
            client.guardrail_of(value),
        ):
            with suppress(NotFoundError, RejectedError, ConfigurationError):
                assert not await call

    paths = {"/api/v1/keys", GUARDED.format("guardrail"), f"{GUARDED.format('guardrail')}/remove"}
    assert {request.url.path for request in seen} <= paths | {"/api/v1/guardrails/assignments/keys"}
    for request in seen:
        if request.url.path == "/api/v1/keys":
            assert dict(request.url.params) == {
                "include_disabled": "true", "include_expired": "true", "workspace_id": value, "offset": "0"
            }  # fmt: skip
        elif request.method == "POST":
            assert json.loads(request.content) == {"key_hashes": [value]}


@given(value=typed)
@settings(deadline=None)
def test_a_management_key_is_shown_to_nobody(value: str) -> None:
    """No message shows it, whether it is accepted or refused, and an accepted key is a valid header value."""
    with listening() as ear:
        block = make(OpenRouterCredentials, management_key=value + CANARY)

    assert CANARY not in ear.text
    if block is not None:
        key = block.management_key.get_secret_value()
        assert httpx.Headers({"Authorization": f"Bearer {key}"})["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    ("kind", "field", "others"),
    [
        (OpenRouterCredentials, "management_key", {}),
        (TokenAuth, "token", {}),
        (AppRoleAuth, "secret_id", {"role_id": "r"}),
        (JwtAuth, "jwt", {"jwt_role": "r"}),
        (InfisicalCredentials, "client_secret", {"client_id": "c"}),
    ],
)
@given(value=typed)
@settings(deadline=None)
def test_a_secret_field_shows_in_nothing(kind: type[Any], field: str, others: dict[str, str], value: str) -> None:
    """Neither the block's repr, text and JSON nor its refusal contain the value of a secret field."""
    made = make(kind, **{field: value + CANARY}, **others)

    if made is not None:
        assert CANARY not in f"{made!r}{made}{made.model_dump()}{made.model_dump_json()}"


@pytest.mark.parametrize(
    ("kind", "field", "others"),
    [
        (OpenRouterCredentials, "base_url", {"management_key": "k"}),
        (VaultCredentials, "url", {"auth": {"token": "t"}}),
        (VaultCredentials, "namespace", {"url": "https://vault.example", "auth": {"token": "t"}}),
        (VaultCredentials, "ca_certificate", {"url": "https://vault.example", "auth": {"token": "t"}}),
        (AppRoleAuth, "mount", {"role_id": "r", "secret_id": "s"}),
        (KubernetesAuth, "mount", {"kubernetes_role": "r"}),
        (JwtAuth, "mount", {"jwt_role": "r", "jwt": "j"}),
        (InfisicalCredentials, "host", {"client_id": "c", "client_secret": "s"}),
        (InfisicalCredentials, "client_id", {"client_secret": "s"}),
    ],
)
@given(value=typed)
@settings(deadline=None)
def test_what_is_accepted_is_one_clean_line(kind: type[Any], field: str, others: dict[str, Any], value: str) -> None:
    """URLs, namespaces and mounts are refused by name, without being quoted, or contain no control character."""
    made = make(kind, **{field: value + CANARY}, **others)

    if made is not None:
        kept = getattr(made, field)
        assert kept.isprintable()
        assert not {".", ".."} & set(kept.split("/")) or field in {"url", "base_url", "host", "client_id"}
