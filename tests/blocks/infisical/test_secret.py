"""A secret in Infisical as a destination."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette

from blocks import InfisicalCredentials, InfisicalSecret
from blocks.errors import ConflictError, NotFoundError, RejectedError, ServiceError
from sandbox.infisical import CLIENT_ID, CLIENT_SECRET, PROJECT_ID, InfisicalSandbox
from sandbox.server import Fault
from tests.blocks.infisical.conftest import KEY, LOGIN, SECRET_PATH, block


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
    """Comment, metadata and older versions stay, and other secrets do not change."""
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
    """A whole rotation reads and writes one secret by its name, and lists nothing."""
    sandbox.put("OPENROUTER_API_KEY", "old")

    await secret.write_content(KEY, await secret.read_content(), {})
    await secret.check()

    assert server[1].state.requests == [LOGIN, ("GET", SECRET_PATH), ("PATCH", SECRET_PATH), ("GET", SECRET_PATH)]


async def test_the_version_is_that_of_the_secret(secret: InfisicalSecret, sandbox: InfisicalSandbox) -> None:
    """A read returns the secret's version, and the next write creates the next one."""
    sandbox.put("OPENROUTER_API_KEY", "old")
    before = await secret.read_content()

    await secret.write_content(KEY, before, {})

    assert (before.version, (await secret.read_content()).version) == (1, 2)


async def test_prefect_reads_and_writes_it_as_any_secret_block(secret: Any) -> None:
    """`write_secret` and `read_secret` of Prefect's `SecretBlock` work, first on an absent secret."""
    await secret.write_secret(b"one")
    await secret.write_secret(b"two")

    assert await secret.read_secret() == b"two"


class TestCreate:
    async def test_a_lost_answer_to_a_create_is_not_made_again(
        self, secret: InfisicalSecret, server: tuple[str, Starlette], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The outcome of a create without an answer is unknown; a read shows that it took effect."""
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
        """Infisical has no check-and-set, so only the caller can decide whether the write is still wanted."""
        await secret.awrite_secret(b"old")
        server[1].state.faults.add(Fault("after", "PATCH", "/secrets/raw"))

        with pytest.raises(ServiceError) as failed:
            await secret.write_content(KEY, await secret.read_content(), {})

        assert failed.value.outcome_unknown
        assert server[1].state.requests.count(("PATCH", SECRET_PATH)) == 1

    async def test_a_secret_that_somebody_else_made_is_not_overwritten(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox
    ) -> None:
        """A create is a conflict if somebody has created the secret since the read."""
        held = await secret.read_content()
        sandbox.put("OPENROUTER_API_KEY", "theirs")

        with pytest.raises(ConflictError, match="holds the secret already"):
            await secret.write_content(KEY, held, {})

        assert sandbox.folders[PROJECT_ID, "prod", "/"]["OPENROUTER_API_KEY"].values == ["theirs"]

    async def test_a_secret_that_vanished_is_not_made_by_an_update(
        self, secret: InfisicalSecret, sandbox: InfisicalSandbox
    ) -> None:
        """A change fails if the secret was deleted since the read."""
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
        """Infisical answers 200 although its change policy holds the write back; the block raises an error."""
        if exists:
            sandbox.put("OPENROUTER_API_KEY", "old")
        sandbox.approvals.add("prod")

        with pytest.raises(RejectedError, match="requires an approval"):
            await secret.write_content(KEY, await secret.read_content(), {})


@pytest.mark.parametrize("name", ["A B", "100%", "what?", "sharp#", "ü", "密钥", "a&b=c", "%2e%2e", "..hidden"])
async def test_odd_names_are_stored_where_they_say(
    server: tuple[str, Starlette], sandbox: InfisicalSandbox, name: str
) -> None:
    """Names are percent-encoded, so that none can lead to another path."""
    secret = block(server[0], name=name)

    await secret.write_content(KEY, await secret.read_content(), {})
    await secret.aclose()

    assert list(sandbox.folders[PROJECT_ID, "prod", "/"]) == [name]


async def test_a_place_is_its_project_environment_and_folder(
    server: tuple[str, Starlette], sandbox: InfisicalSandbox
) -> None:
    """A secret of the same name elsewhere is a different place."""
    sandbox.add_folder("prod & test", "/a b/ü", project="other?")
    sandbox.put("OPENROUTER_API_KEY", "theirs")
    secret = block(server[0], project_id="other?", environment="prod & test", path="/a b/ü/")

    await secret.write_content(KEY, await secret.read_content(), {})
    await secret.aclose()

    assert sandbox.folders["other?", "prod & test", "/a b/ü"]["OPENROUTER_API_KEY"].values == [KEY.get_secret_value()]
    assert sandbox.folders[PROJECT_ID, "prod", "/"]["OPENROUTER_API_KEY"].values == ["theirs"]


def test_the_same_project_on_another_instance_is_another_place() -> None:
    """After an edit to another instance, a key remains at the former one, even if the project was restored there."""
    here, there = block("https://app.infisical.com"), block("https://infisical.example.com")

    assert here.place() != there.place()


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
    """Rejected by the field's name: empty or too long values, control characters, '..', what Infisical cannot store."""
    with pytest.raises(ValueError, match=f"Value error, {next(iter(field))} must"):
        block("http://127.0.0.1:1", **field)


@pytest.mark.parametrize(
    "field",
    [{"host": "http://infisical.example"}, {"client_id": ""}, {"client_id": "a\nb"}, {"client_secret": ""}],
    ids=str,
)
def test_a_connection_that_cannot_work_is_refused(field: dict[str, str]) -> None:
    """An unsafe host or an empty identity is rejected by the field's name, without quoting the client secret."""
    values = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **field}

    with pytest.raises(ValueError, match=next(iter(field))) as refused:
        InfisicalCredentials(**values)

    assert CLIENT_SECRET not in str(refused.value)


def test_nothing_shows_the_client_secret() -> None:
    """The string forms of both blocks hide it."""
    secret = block("https://infisical.example")

    assert CLIENT_SECRET not in repr(secret) + str(secret) + repr(secret.credentials.get_client())
