"""A secret in Infisical as a destination."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from blocks import InfisicalCredentials, InfisicalSecret
from blocks.errors import ForbiddenError, NotFoundError, ServiceError, UnauthorizedError, UnreachableError
from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, PROJECT_ID, InfisicalSandbox, create_app
from sandbox.server import Fault, running
from sandbox.stack import free_port

KEY = SecretStr("sk-or-v1-the-new-key")


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
    return app.state.sandbox


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
    before = await secret.read_held()

    await secret.write_held(KEY, before, {})

    assert before.value is None
    assert (await secret.read_held()).value == KEY


async def test_a_write_changes_the_value_and_nothing_else(secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
    """Comment and older version stay, and other secrets are not touched."""
    sandbox.put("OPENROUTER_API_KEY", "old", comment="do not delete")
    sandbox.put("OTHER", "untouched")

    await secret.write_held(KEY, await secret.read_held(), {"key_rotation": "checkout"})

    folder = sandbox.folders[PROJECT_ID, "prod", "/"]
    assert folder["OPENROUTER_API_KEY"].values == ["old", KEY.get_secret_value()]
    assert folder["OPENROUTER_API_KEY"].comment == "do not delete"
    assert folder["OTHER"].values == ["untouched"]


async def test_one_login_serves_many_calls(secret: InfisicalSecret, server: tuple[str, Starlette]) -> None:
    """The token is reused until it ends."""
    await secret.write_held(KEY, await secret.read_held(), {})
    await secret.read_held()

    assert [path for _, path in server[1].state.requests].count("/api/v1/auth/universal-auth/login") == 1


async def test_a_token_that_ended_is_renewed_by_logging_in_again(
    secret: InfisicalSecret, sandbox: InfisicalSandbox
) -> None:
    """A token that ends between two calls is replaced, and the call is made again."""
    held = await secret.read_held()

    sandbox.end_tokens()
    await secret.write_held(KEY, held, {})

    assert (await secret.read_held()).value == KEY


async def test_a_lost_answer_to_a_create_is_not_made_again(
    secret: InfisicalSecret, server: tuple[str, Starlette]
) -> None:
    """A create whose answer was lost raises with its outcome unknown; reading shows that it took effect."""
    held = await secret.read_held()
    server[1].state.faults.add(Fault("after", "POST", "/secrets/raw", times=1))

    with pytest.raises(ServiceError) as failed:
        await secret.write_held(KEY, held, {})

    assert failed.value.outcome_unknown
    assert (await secret.read_held()).value == KEY


async def test_no_error_quotes_a_secret(secret: InfisicalSecret, server: tuple[str, Starlette]) -> None:
    """An answer that repeats the secret does not get it into the error's text."""
    held = await secret.read_held()
    server[1].state.faults.add(Fault("before", "POST", "/secrets/raw", 400, body=f"bad value {KEY.get_secret_value()}"))

    with pytest.raises(ServiceError) as failed:
        await secret.write_held(KEY, held, {})

    assert KEY.get_secret_value() not in repr(failed.value)


@pytest.mark.parametrize("name", ["A B", "100%", "what?", "sharp#", "ü", "a/b"])
async def test_odd_names_are_stored_where_they_say(
    server: tuple[str, Starlette], sandbox: InfisicalSandbox, name: str
) -> None:
    """A name is percent-encoded on its way, so that it cannot lead elsewhere."""
    secret = block(server[0], name=name)

    try:
        await secret.write_held(KEY, await secret.read_held(), {})
    except NotFoundError:
        assert "/" in name  # the server reads an encoded slash as one; nothing else was touched
    else:
        assert sandbox.folders[PROJECT_ID, "prod", "/"][name].values == [KEY.get_secret_value()]
    await secret.aclose()


async def test_check_says_that_it_works(secret: InfisicalSecret) -> None:
    """A check of a usable folder answers with one sentence."""
    assert "can be read" in await secret.check()


async def test_check_names_wrong_credentials(server: tuple[str, Starlette], sandbox: InfisicalSandbox) -> None:
    """A wrong client secret is called wrong, without quoting it."""
    with pytest.raises(UnauthorizedError, match="client id or the client secret is wrong") as refused:
        await block(server[0], secret="guess").check()

    assert "guess" not in str(refused.value)


@pytest.mark.parametrize("where", [{"project_id": "other"}, {"environment": "nowhere"}, {"path": "/nowhere"}])
async def test_check_names_an_unknown_place(
    server: tuple[str, Starlette], sandbox: InfisicalSandbox, where: dict[str, str]
) -> None:
    """An unknown project, environment or folder is named."""
    with pytest.raises(NotFoundError, match=next(iter(where.values()))):
        await block(server[0], **where).check()


async def test_check_names_a_missing_permission(secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
    """A machine identity without access is told so."""
    sandbox.strangers.add(CLIENT_ID)

    with pytest.raises(ForbiddenError, match="does not let this machine identity read"):
        await secret.check()


async def test_check_says_that_the_host_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nothing listens is called unreachable."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)

    with pytest.raises(UnreachableError, match="no connection could be made"):
        await block(f"http://127.0.0.1:{free_port()}").check()


@pytest.mark.parametrize(
    "field",
    [{"name": ""}, {"name": "a\nb"}, {"name": ".."}, {"path": "/../x"}, {"environment": "x\0"}, {"name": "x" * 300}],
)
def test_names_that_lead_elsewhere_are_refused(field: dict[str, str]) -> None:
    """Empty, too long, or with control characters or '..' segments: refused by the field's name."""
    with pytest.raises(ValueError, match=next(iter(field))):
        block("http://127.0.0.1:1", **field)
