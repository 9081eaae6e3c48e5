"""A secret in Infisical as a destination."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from blocks import InfisicalCredentials, InfisicalSecret
from blocks.destination import Content
from blocks.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
)
from blocks.infisical.client import InfisicalClient
from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, PROJECT_ID, InfisicalSandbox, create_app
from sandbox.server import Fault, running
from sandbox.stack import free_port
from tests.certificates import self_signed

KEY = SecretStr("sk-or-v1-the-new-key")
LOGIN = ("POST", "/api/v1/auth/universal-auth/login")
SECRET_PATH = "/api/v3/secrets/raw/OPENROUTER_API_KEY"


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeating is the business of `blocks.http` and tested there; here nothing waits."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Starlette]]:
    """The stand-in."""
    app = create_app(InfisicalSandbox())
    with running(app) as url:
        yield url, app


@pytest.fixture
def sandbox(server: tuple[str, Starlette]) -> InfisicalSandbox:
    """The stand-in's state, as new."""
    app = server[1]
    fresh = InfisicalSandbox()
    app.state.sandbox.__dict__.update(fresh.__dict__)
    app.state.requests.clear()
    app.state.faults.clear()
    state: InfisicalSandbox = app.state.sandbox
    return state


def block(url: str, secret: str = CLIENT_SECRET, **fields: str) -> InfisicalSecret:
    """A secret in the production environment."""
    where = {"project_id": PROJECT_ID, "environment": "prod", "name": "OPENROUTER_API_KEY", **fields}
    return InfisicalSecret(
        credentials=InfisicalCredentials(host=url, client_id=CLIENT_ID, client_secret=secret), **where
    )


@pytest.fixture
async def secret(server: tuple[str, Starlette], sandbox: InfisicalSandbox) -> AsyncIterator[InfisicalSecret]:
    """A secret that does not exist yet."""
    made = block(server[0])
    yield made
    await made.aclose()


async def test_a_secret_that_is_not_there_is_made(secret: InfisicalSecret) -> None:
    """The first write creates the secret, and it is read back as written."""
    before = await secret.read_content()

    await secret.write_content(KEY, before, {})

    assert before.value is None
    assert (await secret.read_content()).value == KEY


@pytest.mark.parametrize("label", [{}, {"key_rotation": "checkout"}])
async def test_a_write_changes_the_value_and_nothing_else(
    secret: InfisicalSecret, sandbox: InfisicalSandbox, label: dict[str, str]
) -> None:
    """Comment, metadata and older versions stay, and other secrets are not touched."""
    sandbox.put("OPENROUTER_API_KEY", "old", comment="do not delete")
    sandbox.put("OTHER", "untouched")
    folder = sandbox.folders[PROJECT_ID, "prod", "/"]
    folder["OPENROUTER_API_KEY"].metadata = [{"key": "owner", "value": "shop"}]

    await secret.write_content(KEY, await secret.read_content(), label)

    stored = folder["OPENROUTER_API_KEY"]
    assert stored.values == ["old", KEY.get_secret_value()]
    assert (stored.comment, stored.metadata) == ("do not delete", [{"key": "owner", "value": "shop"}])
    assert folder["OTHER"].values == ["untouched"]


async def test_only_the_secret_itself_is_asked_for(
    secret: InfisicalSecret, server: tuple[str, Starlette], sandbox: InfisicalSandbox
) -> None:
    """A whole exchange reads and writes one secret by its name, and lists nothing."""
    sandbox.put("OPENROUTER_API_KEY", "old")

    await secret.write_content(KEY, await secret.read_content(), {})
    await secret.check()

    assert server[1].state.requests == [LOGIN, ("GET", SECRET_PATH), ("PATCH", SECRET_PATH), ("GET", SECRET_PATH)]


async def test_the_version_is_that_of_the_secret(secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
    """What was read says which version it is, and the next write makes the next one."""
    sandbox.put("OPENROUTER_API_KEY", "old")
    before = await secret.read_content()

    await secret.write_content(KEY, before, {})

    assert (before.version, (await secret.read_content()).version) == (1, 2)


async def test_prefect_reads_and_writes_it_as_any_secret_block(secret: Any) -> None:
    """`write_secret` and `read_secret` of Prefect's `SecretBlock` work, first on an absent secret."""
    await secret.write_secret(b"one")
    await secret.write_secret(b"two")

    assert await secret.read_secret() == b"two"


class TestToken:
    async def test_one_login_serves_many_calls(self, secret: InfisicalSecret, server: tuple[str, Starlette]) -> None:
        """The token is reused, also by calls that run at the same time."""
        await asyncio.gather(*(secret.read_content() for _ in range(5)))
        await secret.write_content(KEY, Content(None), {})

        assert server[1].state.requests.count(LOGIN) == 1

    @pytest.mark.parametrize("end", ["end_tokens", "revoke_tokens"])
    async def test_a_token_that_ended_is_replaced_once(
        self, secret: InfisicalSecret, server: tuple[str, Starlette], sandbox: InfisicalSandbox, end: str
    ) -> None:
        """A token that ends (403) or is revoked (401) mid-run costs one more login.

        The write that met it was not done, and is tried again by whoever calls.
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
        """Half a minute before its end, or a tenth of a short life; one without an end is kept."""
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
        """Infisical locks an identity out after some wrong logins, so that one call makes one."""
        wrong = block(server[0], secret="guess")

        with pytest.raises(UnauthorizedError):
            await wrong.read_content()
        await wrong.aclose()

        assert server[1].state.requests == [LOGIN]

    async def test_a_token_that_is_refused_again_is_an_error(
        self, secret: InfisicalSecret, server: tuple[str, Starlette]
    ) -> None:
        """A server that accepts the login and refuses the token is not asked for ever."""
        server[1].state.faults.add(Fault("before", "GET", "/secrets/raw", 401))

        with pytest.raises(UnauthorizedError, match="401 while reading"):
            await secret.read_content()

        assert server[1].state.requests.count(LOGIN) == 2

    @pytest.mark.parametrize("body", ["{}", '{"accessToken": ""}', '{"accessToken": "t", "expiresIn": "soon"}'])
    async def test_a_login_without_a_token_is_an_error(
        self, secret: InfisicalSecret, server: tuple[str, Starlette], body: str
    ) -> None:
        """An answer to the login that lacks its fields is named, not used."""
        server[1].state.faults.add(Fault("before", "POST", "/login", 200, body=body))

        with pytest.raises(UnexpectedAnswerError, match="while logging in"):
            await secret.read_content()


class TestCreate:
    async def test_a_lost_answer_to_a_create_is_not_made_again(
        self, secret: InfisicalSecret, server: tuple[str, Starlette], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A create whose answer was lost raises with its outcome unknown; reading shows that it took effect."""
        monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 4)
        held = await secret.read_content()
        server[1].state.faults.add(Fault("after", "POST", "/secrets/raw"))

        with pytest.raises(ServiceError) as failed:
            await secret.write_content(KEY, held, {})

        assert failed.value.outcome_unknown
        assert (await secret.read_content()).value == KEY
        assert server[1].state.requests.count(("POST", SECRET_PATH)) == 1

    async def test_a_change_whose_answer_is_lost_is_sent_once(
        self, secret: InfisicalSecret, server: tuple[str, Starlette]
    ) -> None:
        """Infisical does not compare before it sets: only who calls knows whether the write is still wanted."""
        await secret.awrite_secret(b"old")
        server[1].state.faults.add(Fault("after", "PATCH", "/secrets/raw"))

        with pytest.raises(ServiceError) as failed:
            await secret.write_content(KEY, await secret.read_content(), {})

        assert failed.value.outcome_unknown
        assert server[1].state.requests.count(("PATCH", SECRET_PATH)) == 1

    async def test_a_secret_that_somebody_else_made_is_not_overwritten(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox
    ) -> None:
        """A create that meets a secret made since the read is a conflict."""
        held = await secret.read_content()
        sandbox.put("OPENROUTER_API_KEY", "theirs")

        with pytest.raises(ConflictError, match="holds the secret already"):
            await secret.write_content(KEY, held, {})

        assert sandbox.folders[PROJECT_ID, "prod", "/"]["OPENROUTER_API_KEY"].values == ["theirs"]

    async def test_a_secret_that_vanished_is_not_made_by_an_update(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox
    ) -> None:
        """A change of a secret that was deleted since the read fails."""
        sandbox.put("OPENROUTER_API_KEY", "old")
        held = await secret.read_content()
        sandbox.folders[PROJECT_ID, "prod", "/"].clear()

        with pytest.raises(NotFoundError, match="holds no such secret"):
            await secret.write_content(KEY, held, {})

        assert sandbox.folders[PROJECT_ID, "prod", "/"] == {}

    @pytest.mark.parametrize("exists", [False, True])
    async def test_a_change_that_waits_for_approval_is_not_a_success(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox, exists: bool
    ) -> None:
        """A change policy that keeps a write back is said so, although Infisical answers 200."""
        if exists:
            sandbox.put("OPENROUTER_API_KEY", "old")
        sandbox.approvals.add("prod")

        with pytest.raises(RejectedError, match="requires an approval"):
            await secret.write_content(KEY, await secret.read_content(), {})


FAULTS: dict[str, tuple[Fault, type[ServiceError], bool]] = {
    "401": (Fault(status=401), UnauthorizedError, False),
    "403": (Fault(status=403), ForbiddenError, False),
    "404 of a proxy": (Fault(status=404, body="<html>not here</html>"), NotFoundError, False),
    "404 of a route": (Fault(status=404, body='{"message": "Route not found"}'), NotFoundError, False),
    "422": (Fault(status=422), RejectedError, False),
    "429": (Fault(status=429, headers={"Retry-After": "30"}), RateLimitedError, False),
    "500": (Fault(status=500), UnavailableError, True),
    "HTML": (Fault(status=200, body="<html>"), UnexpectedAnswerError, True),
    "truncated": (Fault(status=200, body='{"secret": {"secretValue": "sk-or'), UnexpectedAnswerError, True),
    "no field": (Fault(status=200, body='{"secrets": []}'), UnexpectedAnswerError, True),
    "dropped": (Fault(), UnreachableError, True),
}


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_has_its_error(
    secret: InfisicalSecret, server: tuple[str, Starlette], name: str, method: str
) -> None:
    """A fault of a read, a create or an update raises its class, and is never taken for an absent secret."""
    fault, error, outcome_unknown = FAULTS[name]
    leaky = f"{fault.body} {KEY.get_secret_value()} {CLIENT_SECRET}" if fault.body.startswith("<") else fault.body
    server[1].state.faults.add(Fault("before", method, "/raw/", fault.status, fault.headers, leaky))
    held = Content(SecretStr("old") if method == "PATCH" else None)

    with pytest.raises(ServiceError) as failed:
        await (secret.read_content() if method == "GET" else secret.write_content(KEY, held, {}))

    assert (type(failed.value), failed.value.outcome_unknown) == (error, outcome_unknown)
    assert secret.name in str(failed.value)


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 500])
async def test_no_error_quotes_a_secret(
    secret: InfisicalSecret, server: tuple[str, Starlette], sandbox: InfisicalSandbox, status: int, method: str
) -> None:
    """An answer that repeats every secret does not get one into the error."""
    held = await secret.read_content()
    leaky = [KEY.get_secret_value(), CLIENT_SECRET, *sandbox.tokens]
    server[1].state.faults.add(Fault("before", method, "/raw/", status, body=json.dumps({"message": " ".join(leaky)})))

    with pytest.raises(ServiceError) as failed:
        await (
            secret.read_content()
            if method == "GET"
            else secret.write_content(KEY, Content(KEY) if method == "PATCH" else held, {})
        )

    assert not [word for word in leaky if word in repr(failed.value)]
    assert failed.value.__suppress_context__ or failed.value.__context__ is None


async def test_a_hidden_value_is_not_taken_for_the_value(
    secret: InfisicalSecret, server: tuple[str, Starlette]
) -> None:
    """An identity that may see the secret but not its value is refused, not given a placeholder."""
    hidden = '{"secret": {"secretValue": "<hidden-by-infisical>", "secretValueHidden": true}}'
    server[1].state.faults.add(Fault("before", "GET", "/raw/", 200, body=hidden))

    with pytest.raises(ForbiddenError, match="hides the value"):
        await secret.read_content()


@pytest.mark.parametrize("name", ["A B", "100%", "what?", "sharp#", "ü", "密钥", "a&b=c", "%2e%2e", "..hidden"])
async def test_odd_names_are_stored_where_they_say(
    server: tuple[str, Starlette], sandbox: InfisicalSandbox, name: str
) -> None:
    """A name is percent-encoded on its way, so that it cannot lead elsewhere."""
    secret = block(server[0], name=name)

    await secret.write_content(KEY, await secret.read_content(), {})
    await secret.aclose()

    assert list(sandbox.folders[PROJECT_ID, "prod", "/"]) == [name]


async def test_a_place_is_its_project_environment_and_folder(
    server: tuple[str, Starlette], sandbox: InfisicalSandbox
) -> None:
    """A secret of the same name elsewhere is another secret."""
    sandbox.add_folder("prod & test", "/a b/ü", project="other?")
    sandbox.put("OPENROUTER_API_KEY", "theirs")
    secret = block(server[0], project_id="other?", environment="prod & test", path="/a b/ü/")

    await secret.write_content(KEY, await secret.read_content(), {})
    await secret.aclose()

    assert sandbox.folders["other?", "prod & test", "/a b/ü"]["OPENROUTER_API_KEY"].values == [KEY.get_secret_value()]
    assert sandbox.folders[PROJECT_ID, "prod", "/"]["OPENROUTER_API_KEY"].values == ["theirs"]


class TestCheck:
    async def test_it_says_that_it_works(self, secret: InfisicalSecret) -> None:
        """A usable folder is called readable, and a secret that is not there yet is said so."""
        assert (await secret.check()).endswith("can be read, and does not exist yet.")

    async def test_it_says_that_the_secret_can_be_read(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox
    ) -> None:
        """A secret that is there is called readable, without its value."""
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
        """A wrong client secret is called wrong, without quoting it."""
        wrong = block(server[0], secret="guess")

        with pytest.raises(UnauthorizedError, match="client id or the client secret is wrong") as refused:
            await (wrong.check() if whole else wrong.credentials.check())

        assert "guess" not in str(refused.value)

    @pytest.mark.parametrize(
        ("status", "body", "error", "sentence"),
        [
            (401, '{"message": "This identity auth method is temporarily locked"}', UnauthorizedError, "locked"),
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
        """A locked identity, an untrusted address and a host that is not Infisical are told apart."""
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
        """A machine identity that was not added to the project is told so."""
        sandbox.strangers.add(CLIENT_ID)

        with pytest.raises(ForbiddenError, match="among the project's members"):
            await secret.check()

    async def test_an_identity_that_may_only_read(self, secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
        """A missing permission to write shows on the first write, and nothing is stored."""
        sandbox.read_only.add(CLIENT_ID)

        with pytest.raises(ForbiddenError, match="403 while writing"):
            await secret.write_content(KEY, await secret.read_content(), {})

        assert sandbox.folders[PROJECT_ID, "prod", "/"] == {}

    async def test_an_unreachable_host(self) -> None:
        """An address where nothing listens is called unreachable."""
        with pytest.raises(UnreachableError, match="no connection could be made"):
            await block(f"http://127.0.0.1:{free_port()}").check()

    async def test_an_untrusted_certificate(self, tmp_path: Path) -> None:
        """A certificate that is not trusted is named, and the client secret is not sent."""
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
        """A run that checks a place before it works there logs in once."""
        await secret.credentials.check()
        await secret.check()
        await secret.read_content()

        assert server[1].state.requests.count(LOGIN) == 1

    async def test_a_closed_block_works_on(self, secret: InfisicalSecret) -> None:
        """After `aclose` the next call opens a new session."""
        sentence = await secret.check()
        await secret.aclose()

        assert await secret.check() == sentence


@pytest.mark.parametrize(
    "field",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": ".."},
        {"name": "a/b"},
        {"name": "a:b"},
        {"name": " a"},
        {"name": "x" * 300},
        {"path": "/../x"},
        {"path": "/a/./b"},
        {"path": "/a\nb"},
        {"path": "/" + "x" * 300},
        {"environment": "x\0"},
        {"environment": ""},
        {"project_id": "a\u2028b"},
        {"project_id": ""},
    ],
    ids=str,
)
def test_names_that_lead_elsewhere_are_refused(field: dict[str, str]) -> None:
    """Empty, too long, with control characters, '..' segments or what Infisical cannot store: refused by name."""
    with pytest.raises(ValueError, match=f"Value error, {next(iter(field))} must"):
        block("http://127.0.0.1:1", **field)


@pytest.mark.parametrize(
    "field",
    [{"host": "http://infisical.example"}, {"client_id": ""}, {"client_id": "a\nb"}, {"client_secret": ""}],
    ids=str,
)
def test_a_connection_that_cannot_work_is_refused(field: dict[str, str]) -> None:
    """An unsafe host and an empty identity are refused by the field's name, without quoting the client secret."""
    values = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **field}

    with pytest.raises(ValueError, match=next(iter(field))) as refused:
        InfisicalCredentials(**values)

    assert CLIENT_SECRET not in str(refused.value)


def test_nothing_shows_the_client_secret() -> None:
    """The texts of both blocks hide it."""
    secret = block("https://infisical.example")

    assert CLIENT_SECRET not in repr(secret) + str(secret) + repr(secret.credentials.get_client())
