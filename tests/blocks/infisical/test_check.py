"""A check says whether a secret in Infisical can be read, and otherwise what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette

from blocks import InfisicalSecret
from blocks.errors import (
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    ServiceError,
    UnauthorizedError,
    UnreachableError,
)
from sandbox.infisical import CLIENT_ID, PROJECT_ID, InfisicalSandbox, create_app
from sandbox.server import Fault, running
from sandbox.stack import free_port
from tests.blocks.infisical.conftest import KEY, LOGIN, block
from tests.certificates import self_signed


class TestCheck:
    async def test_it_says_that_it_works(self, secret: InfisicalSecret) -> None:
        """A usable folder is reported as readable, and a secret that does not exist yet as such."""
        assert (await secret.check()).endswith("can be read, and does not exist yet.")

    async def test_it_says_that_the_secret_can_be_read(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox
    ) -> None:
        """An existing secret is reported as readable, without its value."""
        sandbox.put("OPENROUTER_API_KEY", KEY.get_secret_value())

        sentence = await secret.check()

        assert sentence.endswith("can be read.")
        assert KEY.get_secret_value() not in sentence

    async def test_the_credentials_alone_can_be_checked(
        self, secret: InfisicalSecret, server: tuple[str, Starlette]
    ) -> None:
        """The connection's own check is a login."""
        assert "accepts the machine identity" in await secret.credentials.check()
        assert server[1].state.requests == [LOGIN]

    @pytest.mark.parametrize("whole", [True, False])
    async def test_wrong_credentials(
        self, server: tuple[str, Starlette], sandbox: InfisicalSandbox, whole: bool
    ) -> None:
        """A wrong client secret is reported without quoting it."""
        wrong = block(server[0], secret="guess")

        with pytest.raises(UnauthorizedError, match="client id or the client secret is wrong") as refused:
            await (wrong.check() if whole else wrong.credentials.check())

        assert "guess" not in str(refused.value)

    @pytest.mark.parametrize(
        ("status", "body", "error", "sentence"),
        [
            (401, '{"message": "This identity auth method is temporarily locked"}', RateLimitedError, "locked"),
            (403, '{"message": "You are not allowed from this IP"}', ForbiddenError, "log in from this address"),
            (404, "not found", NotFoundError, "the host or the client id is wrong"),
        ],
    )
    async def test_other_refusals_of_the_login(
        self,
        secret: InfisicalSecret,
        server: tuple[str, Starlette],
        status: int,
        body: str,
        error: type[ServiceError],
        sentence: str,
    ) -> None:
        """A locked identity, an untrusted address and a host that is not Infisical have different messages."""
        server[1].state.faults.add(Fault("before", "POST", "/login", status, body=body))

        with pytest.raises(error, match=sentence):
            await secret.credentials.check()

    @pytest.mark.parametrize(
        ("where", "sentence"),
        [
            ({"project_id": "other"}, "knows no such project while .* project other"),
            ({"environment": "nowhere"}, "knows no such environment or folder while .* in nowhere"),
            ({"path": "/nowhere"}, "knows no such environment or folder while .* at /nowhere"),
        ],
    )
    async def test_an_unknown_place(
        self, server: tuple[str, Starlette], sandbox: InfisicalSandbox, where: dict[str, str], sentence: str
    ) -> None:
        """An unknown project, environment or folder is named, and never taken for an absent secret."""
        with pytest.raises(NotFoundError, match=sentence):
            await block(server[0], **where).check()

    async def test_an_identity_that_is_no_member(self, secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
        """The message says that the machine identity was not added to the project."""
        sandbox.strangers.add(CLIENT_ID)

        with pytest.raises(ForbiddenError, match="is not a member of the project"):
            await secret.check()

    async def test_an_identity_that_may_only_read(self, secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
        """A missing write permission shows only at the first write, which stores nothing."""
        sandbox.read_only.add(CLIENT_ID)

        with pytest.raises(ForbiddenError, match="403 while writing"):
            await secret.write_content(KEY, await secret.read_content(), {})

        assert sandbox.folders[PROJECT_ID, "prod", "/"] == {}

    async def test_an_unreachable_host(self) -> None:
        """An address without a listener is reported as unreachable."""
        with pytest.raises(UnreachableError, match="no connection could be made"):
            await block(f"http://127.0.0.1:{free_port()}").check()

    async def test_an_untrusted_certificate(self, tmp_path: Path) -> None:
        """The untrusted certificate is named, and the client secret is not sent."""
        app = create_app()
        certfile, keyfile = self_signed(tmp_path)

        with (
            running(app, certfile=certfile, keyfile=keyfile) as url,
            pytest.raises(UnreachableError, match="certificate is not trusted"),
        ):
            await block(url).check()

        assert app.state.requests == []

    async def test_it_leaves_the_session_to_its_caller(
        self, secret: InfisicalSecret, server: tuple[str, Starlette]
    ) -> None:
        """A run that checks a place before it uses it logs in only once."""
        await secret.credentials.check()
        await secret.check()
        await secret.read_content()

        assert server[1].state.requests.count(LOGIN) == 1

    async def test_a_closed_block_works_on(self, secret: InfisicalSecret) -> None:
        """After `aclose` the next call opens a new session."""
        sentence = await secret.check()
        await secret.aclose()

        assert await secret.check() == sentence
