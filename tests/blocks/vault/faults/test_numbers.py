"""Numbers in the other fields of a secret: what Vault answered is what is written back, digit for digit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blocks import VaultCredentials, VaultSecret
from blocks.errors import UnexpectedAnswerError
from blocks.vault.auth import TokenAuth
from sandbox.server import make_app, running
from tests.blocks.vault.vaults import at_once

NUMBERS = [
    "0.12345678901234567890",
    "123456789012345678901234567890.5",
    "1.2345678901234568E+29",
    "123456789012345678901234567890",
    "-9223372036854775809",
    "1" * 5000,
    "1E+400",
    "1.0",
    "-0",
    '[{"a":0.10,"b":18446744073709551616}]',
]


class Keeper:
    """A Vault that holds one secret, as text, and records what is written."""

    def __init__(self) -> None:
        self.neighbour = "1"
        self.written: list[str] = []
        self.url = ""

    async def answer(self, request: Request) -> Response:
        """Answer a read or a write."""
        if request.method == "GET":
            fields = f'{{"value":"old","neighbour":{self.neighbour}}}'
            return Response(f'{{"data":{{"data":{fields},"metadata":{{"version":3}}}}}}')
        self.written.append((await request.body()).decode())
        return Response('{"data":{"version":4}}')

    def secret(self) -> VaultSecret:
        """Return the secret."""
        credentials = VaultCredentials(url=self.url, auth=TokenAuth(token=SecretStr("t")))
        credentials._sleep = at_once
        return VaultSecret(credentials=credentials, path="app")


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A Vault that answers with any text."""
    made = Keeper()
    with running(make_app([Route("/v1/{path:path}", made.answer, methods=["GET", "POST"])])) as made.url:
        yield made


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:24])
async def test_a_write_keeps_every_digit_of_other_fields(keeper: Keeper, number: str) -> None:
    """Given a number in another field, when the key is written, then that number is sent back as it was read."""
    keeper.neighbour = number
    secret = keeper.secret()

    await secret.write_content(SecretStr("new"), await secret.read_content(), {})

    assert f'"neighbour":{number}' in keeper.written[0].replace(" ", "")
    await secret.aclose()


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:24])
async def test_a_fence_keeps_every_digit(keeper: Keeper, number: str) -> None:
    """Given a number in another field, when earlier writes are fenced off, then it is sent back as it was read."""
    keeper.neighbour = number
    secret = keeper.secret()

    await secret.fence(await secret.read_content())

    assert f'"neighbour":{number}' in keeper.written[0].replace(" ", "")
    await secret.aclose()


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e99999999999999999999"])
async def test_what_cannot_be_kept_is_refused_before_anything_is_written(keeper: Keeper, number: str) -> None:
    """Given a number that is no JSON or beyond all bounds, when it is read, then the answer is refused."""
    keeper.neighbour = number
    secret = keeper.secret()

    with pytest.raises(UnexpectedAnswerError):
        await secret.read_content()

    assert not keeper.written
    await secret.aclose()


async def test_a_field_that_is_a_number_is_read(keeper: Keeper) -> None:
    """Given a number in the key's own field, when it is read, then it is somebody else's value, as text."""
    secret = keeper.secret()
    secret = secret.model_copy(update={"field": "neighbour"})
    keeper.neighbour = "0.12345678901234567890"

    held = await secret.read_content()

    assert held.value is not None
    assert "0.12345678901234567890" in held.value.get_secret_value()
    await secret.aclose()
