"""The Infisical stand-in, verified with Infisical's own Python SDK."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from infisical_sdk import InfisicalSDKClient
from infisical_sdk.infisical_requests import APIError
from starlette.applications import Starlette

from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, HIDDEN, PROJECT_ID, InfisicalSandbox, create_app
from sandbox.server import running

WHERE = {"project_id": PROJECT_ID, "environment_slug": "dev", "secret_path": "/"}


class Clock:
    """A clock that the tests set."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 23, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.time


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Starlette]]:
    """The stand-in."""
    app = create_app()
    with running(app) as url:
        yield url, app


@pytest.fixture
def clock() -> Clock:
    """The stand-in's clock."""
    return Clock()


@pytest.fixture
def sandbox(server: tuple[str, Starlette], clock: Clock) -> InfisicalSandbox:
    """The stand-in's state, reset."""
    state: InfisicalSandbox = server[1].state.sandbox
    state.__dict__.update(InfisicalSandbox(now=clock).__dict__)
    return state


@pytest.fixture
def client(server: tuple[str, Starlette], sandbox: InfisicalSandbox) -> Iterator[InfisicalSDKClient]:
    """The SDK, logged in."""
    with InfisicalSDKClient(host=server[0], cache_ttl=None) as sdk:
        sdk.auth.universal_auth.login(CLIENT_ID, CLIENT_SECRET)
        yield sdk


def refused(error: pytest.ExceptionInfo[APIError]) -> tuple[int, str]:
    """Return status and name of an error response, whose fields are Infisical's."""
    answer = error.value.response
    assert set(answer) == {"reqId", "statusCode", "message", "error"}
    return answer["statusCode"], answer["error"]


def test_a_secret_lives_its_whole_life(client: InfisicalSDKClient) -> None:
    """Create, read, update, list and delete answer as the SDK expects."""
    created = client.secrets.create_secret_by_name("KEY", "/", "dev", PROJECT_ID, "one")
    updated = client.secrets.update_secret_by_name("KEY", "/", "dev", PROJECT_ID, "two")
    read = client.secrets.get_secret_by_name("KEY", **WHERE)
    listed = client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)
    client.secrets.delete_secret_by_name("KEY", "/", "dev", PROJECT_ID)
    left = client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)

    assert (created.secretValue, created.version) == ("one", 1)
    assert (updated.version, read.secretValue) == (2, "two")
    assert [secret.secretKey for secret in listed.secrets] == ["KEY"]
    assert left.secrets == []


def test_an_update_keeps_what_it_does_not_name(client: InfisicalSDKClient) -> None:
    """Comment and metadata stay if an update sends only the value."""
    about = [{"key": "owner", "value": "shop"}]
    client.secrets.create_secret_by_name("KEY", "/", "dev", PROJECT_ID, "one", "a comment", secret_metadata=about)

    updated = client.secrets.update_secret_by_name("KEY", "/", "dev", PROJECT_ID, "two")

    assert (updated.secretComment, updated.secretMetadata) == ("a comment", about)


def test_places_are_apart(client: InfisicalSDKClient, sandbox: InfisicalSandbox) -> None:
    """The same name in another project, environment or folder identifies another secret."""
    sandbox.add_folder("dev", project="other")
    places = [(PROJECT_ID, "dev", "/"), (PROJECT_ID, "prod", "/"), (PROJECT_ID, "dev", "/apps/checkout")]
    places.append(("other", "dev", "/"))

    for number, (project, environment, path) in enumerate(places):
        client.secrets.create_secret_by_name("KEY", path, environment, project, str(number))

    read = [client.secrets.get_secret_by_name("KEY", env, path, project).secretValue for project, env, path in places]
    assert read == ["0", "1", "2", "3"]


def test_a_value_can_be_left_out(client: InfisicalSDKClient, sandbox: InfisicalSandbox) -> None:
    """On request, a secret is shown without its value."""
    sandbox.put("KEY", "one", environment="dev")

    read = client.secrets.get_secret_by_name("KEY", **WHERE, view_secret_value=False)

    assert (read.secretValue, read.secretValueHidden) == (HIDDEN, True)


@pytest.mark.parametrize(
    ("project", "environment", "folder", "name"),
    [
        (PROJECT_ID, "dev", "/", "NotFound"),
        (PROJECT_ID, "dev", "/nowhere", "GetSecretByName"),
        (PROJECT_ID, "nowhere", "/", "GetSecretByName"),
        ("other", "dev", "/", "NotFound"),
    ],
)
def test_what_is_not_there_is_a_404(
    client: InfisicalSDKClient, project: str, environment: str, folder: str, name: str
) -> None:
    """A missing secret, folder, environment or project is a 404, each with its own message."""
    with pytest.raises(APIError) as failed:
        client.secrets.get_secret_by_name("MISSING", environment, folder, project)

    assert refused(failed) == (404, name)


def test_a_folder_that_is_not_there_lists_as_empty(client: InfisicalSDKClient) -> None:
    """Only a request for a secret distinguishes a missing folder from an empty one."""
    assert client.secrets.list_secrets("dev", "/nowhere", project_id=PROJECT_ID).secrets == []


def test_a_second_create_is_refused(client: InfisicalSDKClient) -> None:
    """A create does not overwrite."""
    client.secrets.create_secret_by_name("KEY", "/", "dev", PROJECT_ID, "one")

    with pytest.raises(APIError, match="Secret already exist") as failed:
        client.secrets.create_secret_by_name("KEY", "/", "dev", PROJECT_ID, "two")

    assert refused(failed) == (400, "BadRequest")
    assert client.secrets.get_secret_by_name("KEY", **WHERE).secretValue == "one"


def test_a_wrong_login_is_refused(server: tuple[str, Starlette], sandbox: InfisicalSandbox) -> None:
    """A wrong client secret is a 401."""
    with InfisicalSDKClient(host=server[0], cache_ttl=None) as sdk, pytest.raises(APIError) as failed:
        sdk.auth.universal_auth.login(CLIENT_ID, "wrong")

    assert refused(failed) == (401, "UnauthorizedError")


def test_a_token_ends_by_the_clock(client: InfisicalSDKClient, clock: Clock) -> None:
    """A token works until it expires; afterwards it is a 403 with its own error name."""
    client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)

    clock.time += timedelta(hours=2)

    with pytest.raises(APIError) as failed:
        client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)
    assert refused(failed) == (403, "TokenError")


def test_a_revoked_token_is_refused(client: InfisicalSDKClient, sandbox: InfisicalSandbox) -> None:
    """A revoked token is a 401."""
    sandbox.revoke_tokens()

    with pytest.raises(APIError) as failed:
        client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)

    assert refused(failed) == (401, "UnauthorizedError")


def test_an_identity_that_may_only_read_reads(client: InfisicalSDKClient, sandbox: InfisicalSandbox) -> None:
    """A read-only identity can list, but its create is a 403."""
    sandbox.read_only.add(CLIENT_ID)
    client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)

    with pytest.raises(APIError) as failed:
        client.secrets.create_secret_by_name("KEY", "/", "dev", PROJECT_ID, "one")

    assert refused(failed) == (403, "PermissionDenied")


def test_an_identity_that_is_no_member_is_refused(client: InfisicalSDKClient, sandbox: InfisicalSandbox) -> None:
    """An identity outside the project may not even read."""
    sandbox.strangers.add(CLIENT_ID)

    with pytest.raises(APIError) as failed:
        client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)

    assert refused(failed) == (403, "ProjectMembershipNotFound")
