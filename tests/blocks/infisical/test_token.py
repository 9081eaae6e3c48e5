"""One login at Infisical serves many calls, and is repeated when its token has ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from blocks import InfisicalSecret
from blocks.destination import Content
from blocks.errors import UnauthorizedError, UnexpectedAnswerError
from blocks.infisical.client import InfisicalClient
from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, InfisicalSandbox
from sandbox.server import Fault
from tests.blocks.infisical.conftest import KEY, LOGIN, block


class TestToken:
    async def test_one_login_serves_many_calls(self, secret: InfisicalSecret, server: tuple[str, Starlette]) -> None:
        """Calls share the token, even concurrent ones."""
        await asyncio.gather(*(secret.read_content() for _ in range(5)))
        await secret.write_content(KEY, Content(None), {})

        assert server[1].state.requests.count(LOGIN) == 1

    @pytest.mark.parametrize("end", ["end_tokens", "revoke_tokens"])
    async def test_a_token_that_ended_is_replaced_once(
        self, secret: InfisicalSecret, server: tuple[str, Starlette], sandbox: InfisicalSandbox, end: str
    ) -> None:
        """A token that expires (403) or is revoked (401) during a run costs one more login.

        The write that failed with it did nothing, and is left to the caller to repeat.
        """
        held = await secret.read_content()

        getattr(sandbox, end)()
        with pytest.raises(UnauthorizedError) as refused:
            await secret.write_content(KEY, held, {})
        await secret.write_content(KEY, held, {})

        assert refused.value.retryable
        assert not refused.value.outcome_unknown
        assert (await secret.read_content()).value == KEY
        assert server[1].state.requests.count(LOGIN) == 2

    @pytest.mark.parametrize(("lives", "later", "logins"), [(7200, 7169, 1), (7200, 7170, 2), (20, 18, 2), (0, 1e9, 1)])
    async def test_a_token_is_given_up_shortly_before_its_end(
        self, server: tuple[str, Starlette], sandbox: InfisicalSandbox, lives: int, later: float, logins: int
    ) -> None:
        """It is renewed half a minute, or a tenth of its life, before it expires; a token without an end is kept."""
        sandbox.token_ttl = timedelta(seconds=lives)
        times = iter([0.0, later, later])
        client = InfisicalClient(server[0], CLIENT_ID, SecretStr(CLIENT_SECRET), monotonic=lambda: next(times))

        await client.log_in()
        await client.log_in()
        await client.aclose()

        assert server[1].state.requests.count(LOGIN) == logins

    async def test_wrong_credentials_are_tried_once(
        self, server: tuple[str, Starlette], sandbox: InfisicalSandbox
    ) -> None:
        """Infisical locks an identity after a few wrong logins, so a call makes only one."""
        wrong = block(server[0], secret="guess")

        with pytest.raises(UnauthorizedError):
            await wrong.read_content()
        await wrong.aclose()

        assert server[1].state.requests == [LOGIN]

    async def test_a_token_that_is_refused_again_is_an_error(
        self, secret: InfisicalSecret, server: tuple[str, Starlette]
    ) -> None:
        """A server that accepts logins but rejects their tokens must not cause endless logins."""
        server[1].state.faults.add(Fault("before", "GET", "/secrets/raw", 401))

        with pytest.raises(UnauthorizedError, match="401 while reading"):
            await secret.read_content()

        assert server[1].state.requests.count(LOGIN) == 2

    @pytest.mark.parametrize("body", ["{}", '{"accessToken": ""}', '{"accessToken": "t", "expiresIn": "soon"}'])
    async def test_a_login_without_a_token_is_an_error(
        self, secret: InfisicalSecret, server: tuple[str, Starlette], body: str
    ) -> None:
        """A login response without the expected fields is reported and not used."""
        server[1].state.faults.add(Fault("before", "POST", "/login", 200, body=body))

        with pytest.raises(UnexpectedAnswerError, match="while logging in"):
            await secret.read_content()
