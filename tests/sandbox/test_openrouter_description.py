"""The OpenRouter stand-in, verified with requests generated from OpenRouter's API description."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.openrouter import create_app
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, Account, OpenRouterSandbox
from tests.sandbox.conftest import MONDAY

DESCRIBED: dict[str, Any] = json.loads((Path(__file__).parent / "openrouter-description.json").read_text())
OPERATIONS = {name: described for name, described in DESCRIBED.items() if name != "origin"}
WITH_BODY = sorted(name for name, described in OPERATIONS.items() if "body" in described)
OUR_STATUSES = {401, 403}
"""The statuses for a key without permission, which the stand-in returns even where they are not documented."""
HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    0.5,
    1e400,
    "",
    " ",
    "x" * 300,
    "A" * 64,
    [],
    [""],
    [None],
    ["Z"],
    {},
    {"a": 1},
]
HOSTILE += [[f"{number:064x}" for number in range(101)], "2025-01-01", [[]]]


class Standing:
    """A stand-in with one object of each kind, which receives requests without a socket."""

    def __init__(self) -> None:
        self.sandbox = OpenRouterSandbox(now=lambda: MONDAY)
        self.account: Account = self.sandbox.accounts[0]
        self.workspace = self.account.workspaces[0]
        self.key = self.sandbox.add_key(self.account, {"name": "checkout"})
        self.guardrail = str(UUID(int=5))
        self.sandbox.guardrails[self.guardrail] = {"id": self.guardrail, "workspace_id": self.workspace}
        self.credential = self.sandbox.add_credential(self.account, self.workspace, name="production")["id"]
        self.broadcast = self.sandbox.add_broadcast(self.account, self.workspace, name="tracing")["id"]

    async def ask(self, operation: str, body: Any = None, key: str = DEFAULT_MANAGEMENT_KEY) -> httpx.Response:
        """Send a request whose path contains the ids of existing objects."""
        method, path = operation.split()
        ids = {"/byok": self.credential, "/observability": self.broadcast, "/workspaces": self.workspace}
        ids |= {"/guardrails": self.guardrail}
        named = next((each for start, each in ids.items() if path.startswith(start)), "")
        path = path.replace("{id}", named).replace("{hash}", self.key.hash).replace("{interval}", "monthly")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(self.sandbox))) as client:
            return await client.request(method, f"http://stand-in/api/v1{path}", content=content, headers=headers)

    def fit(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """Fill in ids of existing objects, and values that meet the rules that the description has as text only."""
        if operation == "POST /analytics/query":
            body = {"metrics": ["request_count"], **body}
            said: dict[str, Any] = {
                "metrics": ["request_count"],
                "dimensions": ["app", "model"],
                "granularity": "day",
                "filters": [{"field": "api_key_id", "operator": "eq", "value": self.key.hash}],
                "time_range": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-31T00:00:00Z"},
            }
        else:
            hashes = [self.key.hash]
            said = {
                "allowed_api_key_hashes": hashes,
                "api_key_hashes": hashes,
                "key_hashes": hashes,
                "workspace_id": self.workspace,
                "expires_at": "2027-01-01T00:00:00Z",
                "sampling_rate": 0.5,
                "io_logging_sampling_rate": 0.5,
                "limit": 5,
                "limit_usd": 5,
                # The stored part of the description contains the response for this type only.
                "type": "webhook",
                "config": {"url": "https://tracing.example"},
            }
            if operation == "PATCH /keys/{hash}":
                # An empty change is refused, and so is an empty name.
                body, said["name"] = {"name": "checkout", **body}, "checkout"
        return {name: said[name] if name in said and value is not None else value for name, value in body.items()}


@cache
def bodies(operation: str) -> st.SearchStrategy[Any]:
    """Return a strategy for the bodies that the description permits."""
    return from_schema(OPERATIONS[operation]["body"])


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for the values that a schema of the description permits."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return st.one_of([from_schema(each) for each in schema[name]])
    if "allOf" in schema:
        return from_schema(schema["allOf"][0])
    kinds = schema.get("type", "string")
    return st.one_of([_of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _of_kind(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    simple = {"null": st.none(), "boolean": st.booleans()}
    if kind in simple:
        return simple[kind]
    match kind:
        case "integer":
            return st.integers(schema.get("minimum", 1), schema.get("maximum", 1_000))
        case "number":
            return st.floats(schema.get("minimum", 0), schema.get("maximum", 1_000), allow_subnormal=False)
        case "array":
            most = min(schema.get("maxItems", 3), 3)
            return st.lists(from_schema(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=most)
        case _:
            return _object(schema) if kind == "object" else _text(schema)


def _object(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: from_schema(each) for name, each in schema.get("properties", {}).items()}
    required = {name: fields[name] for name in schema.get("required", ())}
    return st.fixed_dictionaries(
        required, optional={name: each for name, each in fields.items() if name not in required}
    )


def _text(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(
            lambda text: len(text) <= schema.get("maxLength", 300)
        )
    match schema.get("format"):
        case "uuid":
            return st.uuids().map(str)
        case "date-time":
            return st.just("2027-01-01T00:00:00Z")
        case _:
            return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 20), 20))


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    """Return whether the description permits a value."""
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def check_answer(operation: str, answer: httpx.Response) -> None:
    """Verify that a response has a documented status and the documented fields."""
    described = OPERATIONS[operation]
    assert answer.status_code in {*described["statuses"], *OUR_STATUSES}
    if answer.is_success:
        jsonschema.validate(answer.json(), described["answer"], jsonschema.Draft202012Validator)
    else:
        assert answer.json()["error"]["code"] == answer.status_code


quick = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("operation", WITH_BODY)
@quick
@given(data=st.data())
async def test_what_the_description_permits_is_done(operation: str, data: st.DataObject) -> None:
    """A body that the description permits, with ids of existing objects, succeeds with a documented response."""
    standing = Standing()
    body = standing.fit(operation, data.draw(bodies(operation)))

    answer = await standing.ask(operation, body)

    assert answer.is_success, (body, answer.text)
    check_answer(operation, answer)


@pytest.mark.parametrize("operation", WITH_BODY)
@quick
@given(data=st.data())
async def test_what_the_description_forbids_is_refused(operation: str, data: st.DataObject) -> None:
    """A body with one value that the description forbids gets 400 and changes nothing."""
    standing = Standing()
    schema = OPERATIONS[operation]["body"]
    body = standing.fit(operation, data.draw(bodies(operation)))
    name = data.draw(st.sampled_from(sorted(schema["properties"])))
    wrong = [value for value in HOSTILE if not is_valid(schema["properties"][name], value)]
    body[name] = data.draw(st.sampled_from(wrong))
    before = shown(standing)

    answer = await standing.ask(operation, body)

    assert answer.status_code == 400, (body, answer.text)
    assert shown(standing) == before


def shown(standing: Standing) -> str:
    """Return the whole state that a request may change."""
    sandbox = standing.sandbox
    keys = [sandbox.show(key) | {"guardrail": key.guardrail_id} for key in sandbox.keys.values()]
    lists = [*sandbox.credentials.values(), *sandbox.broadcasts.values()]
    return str((keys, lists, sandbox.workspace_settings, sandbox.budgets, sandbox.byok_in_budgets))


@pytest.mark.parametrize("operation", WITH_BODY)
async def test_a_body_that_lacks_a_required_field_is_refused(operation: str) -> None:
    """The response is a 400."""
    schema = OPERATIONS[operation]["body"]
    if schema.get("required"):
        assert (await Standing().ask(operation, {})).status_code == 400


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
async def test_each_operation_answers_as_documented(operation: str) -> None:
    """Each operation without a body succeeds with a documented response."""
    if operation not in WITH_BODY:
        standing = Standing()
        standing.sandbox.budgets[standing.workspace] = {"monthly": standing.sandbox.cost}
        answer = await standing.ask(operation)
        assert answer.is_success, answer.text
        check_answer(operation, answer)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
async def test_nobody_else_is_answered(operation: str) -> None:
    """A request with an unknown key gets 401 from every operation."""
    answer = await Standing().ask(operation, {} if operation in WITH_BODY else None, key="sk-or-v1-of-nobody")

    assert answer.status_code == 401
    check_answer(operation, answer)


def test_the_description_is_the_one_of_the_paths_that_are_used() -> None:
    """The stored description covers the client's paths that are listed here."""
    asked = {"/keys", "/keys/{hash}", "/key", "/workspaces", "/workspaces/{id}", "/byok", "/byok/{id}"}
    asked |= {"/observability/destinations", "/observability/destinations/{id}", "/analytics/meta", "/analytics/query"}
    asked |= {"/guardrails/assignments/keys", "/guardrails/{id}/assignments/keys"}

    assert asked <= {operation.split()[1] for operation in OPERATIONS}
