"""Whatever people type: refused in one sentence that names the field, or kept under exactly that name."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from blocks import InfisicalCredentials, InfisicalSecret, OpenRouterCredentials, VaultCredentials, VaultSecret
from blocks.errors import ConfigurationError, NotFoundError, RejectedError
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.lists import ListKind
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from sandbox import infisical, openrouter, vault
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.server import running
from sandbox.vault_engines import KvVersion2
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tasks.model.keys import Marker, read_marker
from tasks.model.rotation import MAX_KEY_NAME, KeySettings, Retirement, Rotation, parse_rotation
from tests.hostile.liar import KEY, listening

RUN = UUID(int=7)
NOW = datetime(2026, 12, 1, tzinfo=UTC)
CANARY = "canary-5f3a9c"
"""Stands inside of what is typed; where it is refused, no message may repeat it."""
NASTY = [
    "",
    " ",
    ".",
    "..",
    "../..",
    "../../sys/policy/root",
    "a/../b",
    "..%2f..%2fsys",
    "%2e%2e",
    "%2e%2e/%2e%2e",
    "%00",
    "100%",
    "a%0d%0aX-Vault-Token: b",
    "a\r\nX-Vault-Token: b",
    "a\nb",
    "a\x00b",
    "a\x7fb",
    "a\u2028b",
    "a\u202eb",
    "\ufeffa",
    "\ud800",
    "сheckout",  # noqa: RUF001 - the first letter is Cyrillic
    "ｃｈｅｃｋｏｕｔ",  # noqa: RUF001 - full-width letters
    "．．／．．",  # noqa: RUF001 - full-width dots and a full-width slash
    "a?b=c",
    "a#b",
    "a;b",
    "a\\..\\b",
    "a//b",
    "/a/",
    " a ",
    "\u00a0a",
    "*",
    "+",
    "{{ key }}",
    "{path}",
    "$(id)",
    "'; DROP TABLE keys; --",
    "é",
    "e\u0301",
    "x" * 10_000,
    "../" * 3_000,
]
typed = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=40),
    st.text("./%\\ ab\n\x00", max_size=12),
    st.lists(st.sampled_from(NASTY), min_size=2, max_size=3).map("".join),
)
"""What a person, or an attacker, types."""


def is_plain(text: str) -> bool:
    """Return whether a message is a short line."""
    return text.isprintable() and text.endswith(".") and len(text) < 400


# --- a rotation ---


def filled_in(field: str, value: Any) -> dict[str, Any]:
    """A rotation whose one field, dotted, holds a value."""
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
"""Every field that a person fills in."""


@pytest.mark.parametrize("field", FIELDS)
@given(value=typed)
@settings(deadline=None)
def test_a_rotations_field_is_refused_by_name_or_makes_a_key_that_is_found_again(field: str, value: str) -> None:
    """A refusal names the field on one line and repeats nothing; what is accepted leads back to rotation and run."""
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
    """A name that somebody made up does not break the message, and a key that was pasted there is not shown."""
    assume(value not in Rotation.model_fields)

    with pytest.raises(ConfigurationError) as refused:
        parse_rotation({**filled_in("name", "checkout"), value: CANARY})

    assert is_plain(str(refused.value))
    assert CANARY not in str(refused.value)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("value", [None, 7, [], "checkout", {"key": []}, {"name": {}}, {"overlap": float("inf")}])
def test_what_is_no_rotation_at_all_is_refused_on_one_line(value: Any) -> None:
    """A parameter of another type is a configuration error like any other."""
    with pytest.raises(ConfigurationError, match=r"^rotation") as refused:
        parse_rotation(value)

    assert is_plain(str(refused.value))


@pytest.mark.parametrize(
    ("field", "value"),
    [("overlap", "P999999999D"), ("overlap", "P3651D"), ("key.limit_usd", 1e300), ("key.limit_usd", "0.12345678901")],
)
def test_what_would_fail_after_the_key_was_made_is_refused_before(field: str, value: Any) -> None:
    """An overlap beyond the calendar, or an amount that no JSON number carries, makes no key."""
    with pytest.raises(ConfigurationError, match=rf"^rotation\.{field}: .* Nothing was created\.$"):
        parse_rotation(filled_in(field, value))


@given(value=typed)
@settings(max_examples=40, deadline=None)
async def test_a_keys_name_reaches_openrouter_as_it_was_typed(value: str) -> None:
    """The stand-in has the key under exactly the name that the request says."""
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
    """A client of a stand-in in this process, whose requests can be looked at."""

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
"""What a value becomes part of, and the calls that do it."""


@pytest.mark.parametrize("call", IN_PATHS)
@given(value=typed)
@settings(deadline=None)
async def test_what_becomes_part_of_a_path_stays_one_segment(call: str, value: str) -> None:
    """A hash, a workspace or a guardrail asks for itself or for nothing; it leads to no other path, and no query."""
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
    """A workspace whose keys are listed, or a key whose guardrail is changed, changes nothing else of its request."""
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
    """Refused or accepted, neither message nor block shows the key, and an accepted one can be a header."""
    with listening() as ear:
        block = _made(OpenRouterCredentials, management_key=value + CANARY)

    assert CANARY not in ear.text
    if block is not None:
        key = block.management_key.get_secret_value()
        assert httpx.Headers({"Authorization": f"Bearer {key}"})["authorization"] == f"Bearer {key}"


def _made(kind: type[Any], **fields: Any) -> Any | None:
    """Make a block, or check that its refusal names a field and repeats nothing."""
    refused: list[ValidationError] = []
    try:
        return kind(**fields)
    except ValidationError as error:
        refused.append(error)
    [refusal] = refused
    places = [entry["loc"] for entry in refusal.errors(include_input=False, include_context=False)]
    assert all(place and place[0] in kind.model_fields for place in places)
    assert CANARY not in f"{refusal}{refusal!r}"
    return None


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
    """Neither repr, text, JSON nor a refusal of a block holds what was typed into a secret field."""
    made = _made(kind, **{field: value + CANARY}, **others)

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
    """Addresses, namespaces and mounts are refused by name, without repeating them, or hold no control character."""
    made = _made(kind, **{field: value + CANARY}, **others)

    if made is not None:
        kept = getattr(made, field)
        assert kept.isprintable()
        assert not {".", ".."} & set(kept.split("/")) or field in {"url", "base_url", "host", "client_id"}


# --- Vault ---


@pytest.fixture(scope="module")
def vault_server() -> Iterator[tuple[str, VaultSandbox]]:
    """The Vault stand-in, over real sockets: hvac and requests have their say about each path."""
    sandbox = VaultSandbox()
    with running(vault.create_app(sandbox)) as url:
        yield url, sandbox


@given(mount=typed, path=typed, field=typed)
@settings(max_examples=150, deadline=None)
@example(mount="secret", path="%2e%2e/%2e%2e/sys", field="value")
@example(mount="a?b", path="a#b;c=d&e", field="{{ key }}")
@example(mount="x" * 512, path="é" * 512, field="x" * 256)
async def test_a_secret_is_written_where_the_block_says_and_nowhere_else(
    vault_server: tuple[str, VaultSandbox], mount: str, path: str, field: str
) -> None:
    """Vault has the key in exactly this field at exactly this path of exactly this mount, or nothing was sent."""
    url, sandbox = vault_server
    credentials = VaultCredentials(url=url, auth=TokenAuth(token=ROOT_TOKEN))
    block = _made(VaultSecret, credentials=credentials, mount=mount, path=path, field=field)
    if block is None:
        return
    sandbox.namespaces[""].clear()
    sandbox.mount(block.mount)

    await block.write_content(SecretStr(KEY), await block.read_content(), {"key_rotation": "checkout"})
    read = await block.read_secret()
    await block.aclose()

    engine = sandbox.namespaces[""][block.mount]
    assert isinstance(engine, KvVersion2)
    assert list(engine.records) == [block.path]
    assert engine.read(block.path)["data"] == {block.field: KEY}
    assert read == KEY.encode()
    assert mount.strip().strip("/") == block.mount
    assert path.strip().strip("/") == block.path


@pytest.mark.parametrize("field", ["mount", "path", "field"])
@given(value=typed)
@settings(deadline=None)
def test_a_place_in_vault_that_is_refused_is_not_repeated(field: str, value: str) -> None:
    """The message names the field and does not hold what was typed."""
    credentials = VaultCredentials(url="https://vault.example", auth=TokenAuth(token="t"))

    made = _made(VaultSecret, **{"credentials": credentials, "path": "app", field: value + CANARY})

    assert made is None or getattr(made, field).endswith(CANARY)


# --- Infisical ---


@pytest.fixture(scope="module")
def infisical_server() -> Iterator[tuple[str, infisical.InfisicalSandbox]]:
    """The Infisical stand-in."""
    app = infisical.create_app()
    with running(app) as url:
        yield url, app.state.sandbox


@given(project=typed, environment=typed, path=typed, name=typed)
@settings(max_examples=150, deadline=None)
@example(project="p", environment="prod", path="/%2e%2e/?a=b#c", name="%2e%2e?a=b#c&d")
@example(project="a&b=c", environment="e+f g", path="/é/．．", name="．．")  # noqa: RUF001 - full-width dots
async def test_infisical_has_the_secret_where_the_block_says_and_nowhere_else(
    infisical_server: tuple[str, infisical.InfisicalSandbox], project: str, environment: str, path: str, name: str
) -> None:
    """Project, environment, folder and name arrive as they stand in the block, or nothing was sent."""
    url, sandbox = infisical_server
    credentials = InfisicalCredentials(host=url, client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET)
    block = _made(
        InfisicalSecret, credentials=credentials, project_id=project, environment=environment, path=path, name=name
    )
    if block is None:
        return
    sandbox.folders.clear()
    sandbox.add_folder(block.environment, block.path, project=block.project_id)

    await block.write_content(SecretStr(KEY), await block.read_content(), {})
    read = await block.read_secret()
    await block.aclose()

    [(place, folder)] = sandbox.folders.items()
    assert place == (block.project_id, block.environment, block.path)
    assert {stored.name: stored.values for stored in folder.values()} == {block.name: [KEY]}
    assert (block.project_id, block.environment, block.name) == (project, environment, name)
    assert read == KEY.encode()


@pytest.mark.parametrize("field", ["project_id", "environment", "path", "name"])
@given(value=typed)
@settings(deadline=None)
def test_a_place_in_infisical_that_is_refused_is_not_repeated(field: str, value: str) -> None:
    """The message names the field and does not hold what was typed."""
    credentials = InfisicalCredentials(host="https://infisical.example", client_id="c", client_secret="s")
    place = {"project_id": "p", "environment": "prod", "name": "KEY"}

    made = _made(InfisicalSecret, **{"credentials": credentials, **place, field: value + CANARY})

    assert made is None or getattr(made, field).endswith(CANARY)
