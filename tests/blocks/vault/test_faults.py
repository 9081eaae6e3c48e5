"""What a Vault that misbehaves does to a destination: faults, lost answers, TLS and hostile answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypedDict

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from blocks import VaultCredentials, VaultSecret
from blocks.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    RateLimitedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    error_for_status,
)
from blocks.http import MAX_ANSWER_BYTES, MAX_ATTEMPTS
from blocks.vault.auth import FOLDERS_SETTING, AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from sandbox.server import Fault, Faults, running
from sandbox.vault import create_app
from sandbox.vault_engines import KvVersion2
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox
from tests.blocks.vault.vaults import READ_WRITE, at_once
from tests.byte_server import speaking

KEY = SecretStr("sk-or-v1-the-new-key")
LABELS = {"key_rotation": "checkout"}
DATA = "/v1/secret/data/app"


class StandIn:
    """A stand-in with faults, a request log and a clock."""

    def __init__(self) -> None:
        self.time = datetime(2026, 12, 1, tzinfo=UTC)
        self.sandbox = VaultSandbox(now=lambda: self.time)
        self.app = create_app(self.sandbox)
        self.url = ""

    @property
    def faults(self) -> Faults:
        """The faults that are switched on."""
        faults: Faults = self.app.state.faults
        return faults

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of every request so far."""
        requests: list[tuple[str, str]] = self.app.state.requests
        return requests

    def stored(self) -> dict[str, str]:
        """The fields at the path, as they are now."""
        engine = self.sandbox.namespaces[""]["secret"]
        assert isinstance(engine, KvVersion2)
        data: dict[str, str] = engine.read("app")["data"]
        return data

    def secret(self, auth: object = None, **credentials: object) -> VaultSecret:
        """The secret `app`, whose retries do not wait."""
        made = VaultCredentials(
            url=credentials.pop("url", self.url), auth=auth or TokenAuth(token=ROOT_TOKEN), **credentials
        )
        made._sleep = at_once
        return VaultSecret(credentials=made, path="app")


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A stand-in of the test's own."""
    made = StandIn()
    with running(made.app) as made.url:
        yield made


@pytest.fixture
async def secret(stand_in: StandIn) -> AsyncIterator[VaultSecret]:
    """A secret that holds `old`; the log starts after it was stored."""
    made = stand_in.secret()
    await made.write_content(SecretStr("old"), await made.read_content(), {})
    stand_in.requests.clear()
    yield made
    await made.aclose()


async def test_a_rotation_costs_four_calls(stand_in: StandIn, secret: VaultSecret) -> None:
    """Reading, writing, labelling and reading back are one call each, without a login for a token."""
    await secret.write_content(KEY, await secret.read_content(), LABELS)
    await secret.read_content()

    metadata = "/v1/secret/metadata/app"
    assert stand_in.requests == [("GET", DATA), ("POST", DATA), ("PATCH", metadata), ("GET", DATA)]


async def test_a_search_reads_what_there_is_and_no_more(stand_in: StandIn, secret: VaultSecret) -> None:
    """Looking for an older version costs one call, and one for each version until the one that is wanted."""
    for value in ("wanted", "newer", "destroyed", "current"):
        await secret.write_content(SecretStr(value), await secret.read_content(), {})
    engine = stand_in.sandbox.namespaces[""]["secret"]
    assert isinstance(engine, KvVersion2)
    engine.records["app"].versions[4].destroyed = True
    stand_in.requests.clear()

    assert await secret.read_older(lambda value: value == SecretStr("wanted")) == SecretStr("wanted")

    assert stand_in.requests == [("GET", "/v1/secret/metadata/app"), ("GET", DATA), ("GET", DATA)]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_read_is_repeated(stand_in: StandIn, secret: VaultSecret, status: int) -> None:
    """A read that failed for the moment is made again."""
    stand_in.faults.add(Fault(method="GET", status=status, times=MAX_ATTEMPTS - 1))

    held = await secret.read_content()

    assert held.value == SecretStr("old")


@pytest.mark.parametrize("status", [400, 401, 404, 405, 409, 412, 418, 429, 500, 502, 503, 504])
async def test_every_status_has_its_error(stand_in: StandIn, secret: VaultSecret, status: int) -> None:
    """An error's class follows the status, its text names the call and never the answer."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(method="POST", status=status, body='{"errors": ["hvs.secret-text"]}'))

    with pytest.raises(error_for_status(status)) as failed:
        await secret.write_content(KEY, held, {})

    assert "hvs." not in str(failed.value)
    assert KEY.get_secret_value() not in str(failed.value)
    assert failed.value.__cause__ is None


async def test_a_service_that_asks_for_a_long_wait_is_reported(stand_in: StandIn, secret: VaultSecret) -> None:
    """Retry-After is carried by the error, and a long one is not waited for."""
    stand_in.faults.add(Fault(status=429, headers={"Retry-After": "600"}))

    with pytest.raises(RateLimitedError) as failed:
        await secret.read_content()

    assert failed.value.retry_after == 600
    assert len(stand_in.requests) == 1


async def test_a_write_that_was_refused_for_the_moment_is_left_to_who_calls(
    stand_in: StandIn, secret: VaultSecret
) -> None:
    """A 429 shows that nothing was written; a rotation looks at its ledger before it tries again."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(method="POST", status=429, times=1))

    with pytest.raises(ServiceError) as refused:
        await secret.write_content(KEY, held, {})

    assert refused.value.retryable
    assert [method for method, _ in stand_in.requests].count("POST") == 1


async def test_a_secret_written_by_a_person_is_tried_again(stand_in: StandIn, secret: VaultSecret) -> None:
    """Outside of a rotation nobody looks at a ledger, so what was refused for the moment is tried again."""
    stand_in.faults.add(Fault(method="POST", status=429, times=1))

    await secret.awrite_secret(KEY.get_secret_value().encode())

    assert stand_in.stored() == {"value": KEY.get_secret_value()}


@pytest.mark.parametrize("status", [None, 500, 502])
async def test_a_write_whose_answer_is_lost_is_not_repeated(
    stand_in: StandIn, secret: VaultSecret, status: int | None
) -> None:
    """The caller is told that the outcome is unknown, and finds by reading that the write took effect."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(when="after", method="POST", path=DATA, status=status))

    with pytest.raises(ServiceError) as failed:
        await secret.write_content(KEY, held, {})

    assert failed.value.outcome_unknown is True
    assert [method for method, _ in stand_in.requests].count("POST") == 1
    assert stand_in.stored() == {"value": KEY.get_secret_value()}


@pytest.mark.parametrize("status", [403, 405, 500, None])
async def test_labels_never_fail_a_write(
    stand_in: StandIn, secret: VaultSecret, caplog: pytest.LogCaptureFixture, status: int | None
) -> None:
    """A secret that is stored counts as written, and a warning says that its labels are not."""
    stand_in.faults.add(Fault(path="/metadata/", status=status))

    with caplog.at_level(logging.WARNING):
        await secret.write_content(KEY, await secret.read_content(), LABELS)

    assert stand_in.stored() == {"value": KEY.get_secret_value()}
    assert "its labels were not" in caplog.text
    assert KEY.get_secret_value() not in caplog.text


async def test_a_sealed_vault_is_not_asked_again(stand_in: StandIn, secret: VaultSecret) -> None:
    """Somebody has to unseal it, so a sealed Vault is reported at once."""
    stand_in.sandbox.sealed = True

    with pytest.raises(UnavailableError, match="is sealed"):
        await secret.read_content()

    assert len(stand_in.requests) == 1


async def test_a_redirect_is_not_followed(stand_in: StandIn, secret: VaultSecret) -> None:
    """A token is never carried to where an answer points."""
    stand_in.faults.add(Fault(status=307, headers={"Location": f"{stand_in.url}/v1/sys/health"}))

    with pytest.raises(UnexpectedAnswerError, match="redirect"):
        await secret.read_content()

    assert stand_in.requests == [("GET", DATA)]


@pytest.mark.parametrize("body", ["<html>", "[1]", "null", '"text"', "[" * 100_000, '{"data": {"data": 1}}', "{}"])
async def test_an_answer_that_is_not_documented_is_named(stand_in: StandIn, secret: VaultSecret, body: str) -> None:
    """Whatever else answers in Vault's place, the write is not taken for done."""
    held = await secret.read_content()
    stand_in.faults.add(Fault(status=200, body=body))

    with pytest.raises(UnexpectedAnswerError):
        await secret.write_content(KEY, held, {})


@pytest.mark.parametrize("status", [200, 307, 500])
async def test_an_answer_without_end_is_not_read(stand_in: StandIn, secret: VaultSecret, status: int) -> None:
    """An answer over the limit is refused, whatever its status."""
    headers = {"Location": f"{stand_in.url}/"}
    stand_in.faults.add(Fault(status=status, headers=headers, body="x" * (MAX_ANSWER_BYTES + 1)))

    with pytest.raises(UnexpectedAnswerError, match="sent more than"):
        await secret.read_content()


def trickling(connection: socket.socket, over: threading.Event) -> None:
    """Promise an answer and send one byte now and then."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not over.wait(0.05):
        connection.sendall(b" ")


async def test_an_answer_that_trickles_is_given_up(stand_in: StandIn) -> None:
    """Each byte comes in time, and yet the call and its thread end at the deadline: by itself it would take hours."""
    with speaking(trickling) as url:
        secret = stand_in.secret(url=url, connect_timeout_seconds=0.1, read_timeout_seconds=0.2)

        with pytest.raises(UnreachableError, match="no answer in time"):
            await secret.write_content(KEY, await secret.read_content(), {})

        await secret.aclose()


async def test_no_answer_within_the_timeout_is_named(stand_in: StandIn) -> None:
    """A call that is not answered in time says so, and that it may have taken effect."""
    stand_in.faults.add(Fault(delay=1.0, status=0))
    secret = stand_in.secret(read_timeout_seconds=0.1)

    with pytest.raises(UnreachableError, match="no answer in time") as failed:
        await secret.read_content()

    assert failed.value.outcome_unknown is True
    await secret.aclose()


async def test_an_attempt_that_was_given_up_does_not_write_later(stand_in: StandIn) -> None:
    """When the login takes the whole of the time, its write is not made any more."""
    stand_in.sandbox.allow_login("approle", "r", "s")
    secret = stand_in.secret(AppRoleAuth(role_id="r", secret_id="s"), connect_timeout_seconds=0.1)
    held = await stand_in.secret().read_content()
    secret.credentials.connection()._deadline_seconds = 0.2
    stand_in.faults.add(Fault(when="before", path="login", delay=0.4, status=0))

    with pytest.raises(UnreachableError):
        await secret.write_content(KEY, held, {})

    await asyncio.get_running_loop().shutdown_default_executor()
    assert ("POST", DATA) not in stand_in.requests


@pytest.mark.parametrize("auth", ["approle", "kubernetes", "jwt"])
async def test_every_login_is_repeated_when_its_token_has_ended(
    stand_in: StandIn, auth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login that can be made again is made once more when its token's time is over, at its own mount."""
    monkeypatch.setenv(FOLDERS_SETTING, str(tmp_path))
    (tmp_path / "token").write_text("proof\n")
    stand_in.sandbox.allow_login(f"team/{auth}", "role", "proof", {"secret/data/app": READ_WRITE})
    logins = {
        "approle": AppRoleAuth(role_id="role", secret_id="proof", mount="team/approle"),
        "kubernetes": KubernetesAuth(
            kubernetes_role="role", mount="team/kubernetes", token_path=str(tmp_path / "token")
        ),
        "jwt": JwtAuth(jwt_role="role", jwt="proof", mount="team/jwt"),
    }
    secret = stand_in.secret(logins[auth])
    held = await secret.read_content()

    stand_in.time += timedelta(hours=2)
    await secret.write_content(KEY, held, {})

    assert stand_in.stored() == {"value": KEY.get_secret_value()}
    assert stand_in.requests.count(("POST", f"/v1/auth/team/{auth}/login")) == 2
    await secret.aclose()


async def test_calls_that_share_a_login_log_in_once(stand_in: StandIn) -> None:
    """Destinations with one credentials block are read at once: one login, and one more when its token has ended."""
    stand_in.sandbox.allow_login("approle", "role", "proof", {"secret/data/app": READ_WRITE})
    secret = stand_in.secret(AppRoleAuth(role_id="role", secret_id="proof"))
    others = [VaultSecret(credentials=secret.credentials, path="app") for _ in range(5)]
    for other in others:
        other.credentials = secret.credentials
    login = ("POST", "/v1/auth/approle/login")

    await asyncio.gather(*(other.read_content() for other in others))
    logins_at_first = stand_in.requests.count(login)
    stand_in.time += timedelta(hours=2)
    await asyncio.gather(*(other.read_content() for other in others))

    assert (logins_at_first, stand_in.requests.count(login)) == (1, 2)
    await secret.aclose()


async def test_a_token_that_ended_is_told_from_a_missing_permission(stand_in: StandIn) -> None:
    """A static token whose time is over is called so; one that may not do it is called accepted."""
    token = stand_in.sandbox.add_token({"secret/data/else": {"read"}}, timedelta(hours=1))
    secret = stand_in.secret(TokenAuth(token=token))

    with pytest.raises(ForbiddenError, match="accepts the token but does not permit reading secret/app"):
        await secret.read_content()
    stand_in.time += timedelta(hours=2)
    with pytest.raises(UnauthorizedError, match="wrong, has expired or was revoked"):
        await secret.read_content()

    await secret.aclose()


async def test_a_missing_service_account_names_the_field(stand_in: StandIn) -> None:
    """Outside of a pod, the Kubernetes login says which file is missing."""
    secret = stand_in.secret(KubernetesAuth(kubernetes_role="role"))

    with pytest.raises(ConfigurationError, match=r"auth\.token_path: .* cannot be read"):
        await secret.read_content()


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Kubernetes mounts it, where the worker's environment names a link to it; beside it a secret."""
    data = tmp_path / "account" / "..2026_12_01"
    data.mkdir(parents=True)
    (data / "token").write_text("proof")
    (data.parent / "..data").symlink_to(data.name)
    (data.parent / "token").symlink_to("..data/token")
    (tmp_path / "run").symlink_to("account")
    (tmp_path / "id_rsa").write_text("a secret of this machine")
    monkeypatch.setenv(FOLDERS_SETTING, f"/nowhere:{tmp_path / 'run'}")
    return data.parent


async def test_a_token_mounted_by_kubernetes_is_sent(stand_in: StandIn, mounted: Path) -> None:
    """The links within the folder, and the one to it, do not matter."""
    stand_in.sandbox.allow_login("kubernetes", "role", "proof", {"secret/data/app": READ_WRITE})

    for name in ("account/token", "run/token"):
        secret = stand_in.secret(KubernetesAuth(kubernetes_role="role", token_path=str(mounted.parent / name)))
        assert (await secret.read_content()).value is None
        await secret.aclose()


@pytest.mark.parametrize("path", ["id_rsa", "account/../id_rsa", "account/link", "account-of-others", "none"])
async def test_no_other_file_of_the_machine_is_sent(stand_in: StandIn, mounted: Path, path: str) -> None:
    """Whoever may edit a block cannot have a file of the worker sent to a host of their choice."""
    (mounted / "link").symlink_to(mounted.parent / "id_rsa")
    (mounted.parent / "account-of-others").write_text("a secret of this machine")
    secret = stand_in.secret(KubernetesAuth(kubernetes_role="role", token_path=str(mounted.parent / path)))

    with pytest.raises(ConfigurationError, match=rf"auth\.token_path: the file is not in .*{FOLDERS_SETTING}"):
        await secret.read_content()

    assert stand_in.requests == []


@pytest.mark.parametrize("named", ["", ".", "account"])
async def test_only_whole_paths_in_the_setting_count(
    stand_in: StandIn, mounted: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """An empty or a relative name would mean wherever the worker was started."""
    monkeypatch.chdir(mounted.parent)
    monkeypatch.setenv(FOLDERS_SETTING, named)
    secret = stand_in.secret(KubernetesAuth(kubernetes_role="role", token_path="account/token"))

    with pytest.raises(ConfigurationError, match=r"auth\.token_path: the file is not in"):
        await secret.read_content()


async def test_a_namespace_is_sent_along(stand_in: StandIn) -> None:
    """A secret is written in the credentials' namespace only."""
    stand_in.sandbox.mount("secret", namespace="team/a")
    secret = stand_in.secret(namespace="/team/a/")

    await secret.write_content(KEY, await secret.read_content(), {})

    assert (await stand_in.secret().read_content()).value is None
    assert (await secret.read_content()).value == KEY
    await secret.aclose()


async def test_no_token_is_taken_from_the_environment(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAULT_TOKEN that hvac looks for cannot take the place of the login that was configured."""
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)
    secret = stand_in.secret(AppRoleAuth(role_id="nobody", secret_id="nothing"))

    with pytest.raises(UnauthorizedError, match="refused the login"):
        await secret.read_content()


async def test_a_connection_is_used_again(secret: VaultSecret, caplog: pytest.LogCaptureFixture) -> None:
    """The calls of a run share one connection, which is opened by the first."""
    await secret.aclose()

    with caplog.at_level(logging.DEBUG, "urllib3.connectionpool"):
        await secret.write_content(KEY, await secret.read_content(), LABELS)

    assert caplog.text.count("Starting new HTTP connection") == 1


async def test_two_writers_at_once_cannot_both_win(stand_in: StandIn, secret: VaultSecret) -> None:
    """Of two writes prepared from the same version exactly one is made."""
    held = await secret.read_content()
    writes = [secret.write_content(SecretStr(value), held, {}) for value in ("one", "two")]

    outcomes = await asyncio.gather(*writes, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if outcome] == [ConflictError]


class Certified(TypedDict):
    """The files that a server needs for https."""

    certfile: str
    keyfile: str


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a private authority")])
        basic = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = self._build(self._key, self._name).add_extension(basic, critical=True)
        self._signed = self._certificate.sign(self._key, hashes.SHA256())
        self.pem = self._signed.public_bytes(serialization.Encoding.PEM).decode()

    def _build(self, key: ec.EllipticCurvePrivateKey, name: x509.Name) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def certify_loopback(self) -> Certified:
        """Write a certificate for 127.0.0.1 and its key to files."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vault")])
        names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        certificate = self._build(key, name).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        (self._home / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        (self._home / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return Certified(certfile=str(self._home / "cert.pem"), keyfile=str(self._home / "key.pem"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that nobody trusts by default."""
    return Authority(tmp_path)


async def test_a_certificate_that_is_not_trusted_is_named(authority: Authority) -> None:
    """No call is made to a host whose certificate is not trusted, and the error says why."""
    vault = StandIn()
    with running(vault.app, **authority.certify_loopback()) as url:
        secret = vault.secret(url=url)

        with pytest.raises(UnreachableError, match="certificate is not trusted") as failed:
            await secret.read_content()

        assert failed.value.outcome_unknown is False
        assert vault.requests == []
        await secret.aclose()


@pytest.mark.parametrize("joint", ["\n", " ", ""], ids=["as it is", "pasted with spaces", "pasted in one line"])
async def test_a_private_authority_is_trusted(authority: Authority, joint: str) -> None:
    """With the authority's certificate the host is trusted, even if a form has eaten the line breaks."""
    vault = StandIn()
    with running(vault.app, **authority.certify_loopback()) as url:
        secret = vault.secret(url=url, ca_certificate=authority.pem.replace("\n", joint))

        held = await secret.read_content()

        assert held.version == 0
        await secret.aclose()


async def test_a_private_authority_is_the_only_one_trusted(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the public authorities nor those of the environment may vouch for a Vault with its own authority."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    (tmp_path / "bundle.pem").write_text(other.pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "bundle.pem"))
    vault = StandIn()
    with running(vault.app, **other.certify_loopback()) as url:
        secret = vault.secret(url=url, ca_certificate=authority.pem)

        with pytest.raises(UnreachableError, match="certificate is not trusted"):
            await secret.read_content()

        await secret.aclose()
