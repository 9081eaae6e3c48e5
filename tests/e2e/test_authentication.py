"""The Prefect server with the settings that docs/explanation/threat-model.md recommends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sandbox.stack import Stack
from tests.e2e.conftest import with_long_waits
from tests.hostile.liar import KEY

pytestmark = with_long_waits
PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "threat-model.md").read_text()
AUTHENTICATION = dict(re.findall(r"^(PREFECT_(?:SERVER_)?API_AUTH_STRING)=(.*)$", PAGE, re.MULTILINE))
OPERATOR = tuple(AUTHENTICATION["PREFECT_API_AUTH_STRING"].split(":"))


@pytest.fixture(scope="module")
def server(migrated: Callable[[Stack], Stack]) -> Iterator[Stack]:
    """A server with the page's settings."""
    with migrated(Stack(AUTHENTICATION)) as stack:
        yield stack


@pytest.fixture(scope="module")
def secret_url(server: Stack) -> str:
    """The URL of a stored secret, with the parameter that reveals it."""
    api = f"{server.url}/api"
    with httpx.Client(base_url=api, auth=OPERATOR) as client:
        kind = client.get("/block_types/slug/secret").raise_for_status().json()["id"]
        wanted = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
        schema = client.post("/block_schemas/filter", json=wanted).raise_for_status().json()[0]["id"]
        document = {"name": "checkout", "block_type_id": kind, "block_schema_id": schema, "data": {"value": KEY}}
        stored = client.post("/block_documents/", json=document).raise_for_status().json()["id"]
    return f"{api}/block_documents/{stored}?include_secrets=true"


@pytest.mark.parametrize("auth", [None, ("operator", "guess")], ids=["nobody", "wrong password"])
def test_without_the_password_no_secret_is_told(secret_url: str, auth: tuple[str, str] | None) -> None:
    """Without the right password, the request is refused."""
    answer = httpx.get(secret_url, auth=auth)

    assert answer.status_code == 401
    assert KEY not in answer.text


def test_with_the_password_every_secret_is_told(secret_url: str) -> None:
    """This is the limit that the page states: whoever has the password can read everything."""
    assert httpx.get(secret_url, auth=OPERATOR).json()["data"]["value"] == KEY


def test_the_command_line_works_with_the_pages_settings(server: Stack) -> None:
    """The worker's settings, which the command line shares, contain the password."""
    assert "secret" in server.cli("block", "type", "ls")
