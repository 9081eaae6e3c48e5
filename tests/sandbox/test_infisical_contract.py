"""The Infisical stand-in, judged by Infisical's own Python SDK."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from infisical_sdk import InfisicalSDKClient
from infisical_sdk.infisical_requests import APIError

from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, PROJECT_ID, create_app
from sandbox.server import running

WHERE = {"project_id": PROJECT_ID, "environment_slug": "dev", "secret_path": "/"}


@pytest.fixture(scope="module")
def client() -> Iterator[InfisicalSDKClient]:
    """The SDK, logged in."""
    with running(create_app()) as url:
        sdk = InfisicalSDKClient(host=url, cache_ttl=None)
        sdk.auth.universal_auth.login(CLIENT_ID, CLIENT_SECRET)
        yield sdk


def test_a_secret_lives_its_whole_life(client: InfisicalSDKClient) -> None:
    """Create, read, update, list and delete answer as the SDK expects."""
    created = client.secrets.create_secret_by_name("KEY", "/", "dev", PROJECT_ID, "one")
    updated = client.secrets.update_secret_by_name("KEY", "/", "dev", PROJECT_ID, "two")
    read = client.secrets.get_secret_by_name("KEY", **WHERE)
    listed = client.secrets.list_secrets("dev", "/", project_id=PROJECT_ID)
    client.secrets.delete_secret_by_name("KEY", "/", "dev", PROJECT_ID)

    assert (created.secretValue, created.version) == ("one", 1)
    assert (updated.version, read.secretValue) == (2, "two")
    assert [secret.secretKey for secret in listed.secrets] == ["KEY"]


@pytest.mark.parametrize(("name", "folder"), [("MISSING", "/"), ("MISSING", "/nowhere")])
def test_what_is_not_there_is_a_404(client: InfisicalSDKClient, name: str, folder: str) -> None:
    """A missing secret and a missing folder are both a 404, as at the real one."""
    with pytest.raises(APIError) as failed:
        client.secrets.get_secret_by_name(name, "dev", folder, PROJECT_ID)

    assert failed.value.status_code == 404


def test_a_wrong_login_is_refused(client: InfisicalSDKClient) -> None:
    """A wrong client secret is a 401."""
    with pytest.raises(APIError) as failed:
        InfisicalSDKClient(host=client.host).auth.universal_auth.login(CLIENT_ID, "wrong")

    assert failed.value.status_code == 401
