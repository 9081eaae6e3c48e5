"""HashiCorp Vault (or OpenBao), KV version 2: the credentials block and the secret block.

Source of paths, options and statuses: Vault's API documentation, "KV secrets engine - version 2"
(https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2) and "Auth methods". The calls go through hvac.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import hvac
import requests
from hvac import exceptions as vault_exceptions
from hvac.utils import format_url
from prefect.blocks.abstract import CredentialsBlock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, field_validator
from requests.adapters import HTTPAdapter

from blocks.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    error_for_status,
)
from blocks.http import MAX_ANSWER_BYTES, is_certificate_error, with_retries
from blocks.secrets import DestinationBlock, Held
from blocks.urls import safe_base_url

CALL_DEADLINE_SECONDS = 30.0
"""The longest that one call may take in all, however slowly its answer trickles in."""
MAX_PATH_LENGTH = 512
SEALED = 503
KV_VERSION_2 = "2"
T = TypeVar("T")


def _segments(value: str) -> str:
    path = value.strip("/")
    parts = path.split("/")
    if not path or len(path) > MAX_PATH_LENGTH or not path.isprintable() or any(p in ("", ".", "..") for p in parts):
        raise ValueError(
            f"must be 1 to {MAX_PATH_LENGTH} printable characters without empty, '.' or '..' segments between slashes"
        )
    return path


VaultPath = Annotated[str, AfterValidator(_segments)]


class _Auth(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @property
    def renewable(self) -> bool:
        """Whether logging in again gives a new token."""
        return True

    def login(self, client: hvac.Client) -> None:
        """Give the client a token."""
        raise NotImplementedError


class TokenAuth(_Auth):
    """Authenticate with a token that somebody made."""

    model_config = ConfigDict(title="Token")

    token: SecretStr = Field(title="Token", description="A Vault token.")

    @property
    def renewable(self) -> bool:
        """A given token cannot be asked for again."""
        return False

    def login(self, client: hvac.Client) -> None:
        """Use the token as it is."""
        client.token = self.token.get_secret_value()


class AppRoleAuth(_Auth):
    """Authenticate as a machine with a role id and a secret id."""

    model_config = ConfigDict(title="AppRole")

    role_id: str = Field(title="Role ID", description="The role's id.")
    secret_id: SecretStr = Field(title="Secret ID", description="A secret id of the role.")
    mount: VaultPath = Field(default="approle", title="Mount", description="Where the auth method is mounted.")

    def login(self, client: hvac.Client) -> None:
        """Log in with AppRole."""
        client.auth.approle.login(
            self.role_id, self.secret_id.get_secret_value(), use_token=True, mount_point=self.mount
        )


class KubernetesAuth(_Auth):
    """Authenticate with the service account token of the pod that the flow runs in."""

    model_config = ConfigDict(title="Kubernetes")

    kubernetes_role: str = Field(title="Role", description="The role of the auth method.")
    mount: VaultPath = Field(default="kubernetes", title="Mount", description="Where the auth method is mounted.")
    token_path: str = Field(
        default="/var/run/secrets/kubernetes.io/serviceaccount/token",
        title="Token file",
        description="Where the pod finds its service account token.",
    )

    def login(self, client: hvac.Client) -> None:
        """Log in with the pod's service account token."""
        try:
            jwt = Path(self.token_path).read_text().strip()
        except OSError:
            raise ConfigurationError(
                f"auth.token_path: there is no service account token at {self.token_path}; is this a Kubernetes pod?"
            ) from None
        client.auth.kubernetes.login(self.kubernetes_role, jwt, use_token=True, mount_point=self.mount)


class JwtAuth(_Auth):
    """Authenticate with a JSON web token."""

    model_config = ConfigDict(title="JWT")

    jwt_role: str = Field(title="Role", description="The role of the auth method.")
    jwt: SecretStr = Field(title="JWT", description="A JSON web token that the auth method trusts.")
    mount: VaultPath = Field(default="jwt", title="Mount", description="Where the auth method is mounted.")

    def login(self, client: hvac.Client) -> None:
        """Log in with the JWT."""
        answer = client.auth.jwt.jwt_login(self.jwt_role, self.jwt.get_secret_value(), path=self.mount)
        client.token = answer["auth"]["client_token"]


class _BoundedAdapter(HTTPAdapter):
    """Reads an answer within a limit of size and time, and may trust one more certificate authority."""

    def __init__(self, ca_certificate: str | None) -> None:
        self._context = ssl.create_default_context()
        if ca_certificate:
            self._context.load_verify_locations(cadata=ca_certificate)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the connection pool with our certificate authorities."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        """Send a request and read its answer whole."""
        deadline = time.monotonic() + CALL_DEADLINE_SECONDS
        response = super().send(request, **{**kwargs, "stream": True})
        body = bytearray()
        while chunk := response.raw.read1(65_536, decode_content=True):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise UnexpectedAnswerError(f"Vault sent more than {MAX_ANSWER_BYTES} bytes.")
            if time.monotonic() > deadline:
                raise requests.Timeout
        response._content = bytes(body)  # noqa: SLF001 - requests has no public way to hand a body over
        response._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001
        return response


class VaultCredentials(CredentialsBlock):
    """A connection to HashiCorp Vault or OpenBao: where it is, and how to authenticate.

    Attributes:
        url: Vault's address.
        auth: How to authenticate.
        namespace: The Vault namespace.
        ca_certificate: A private certificate authority that signed Vault's certificate.
        connect_timeout_seconds: How long to wait for a connection.
        read_timeout_seconds: How long to wait for an answer.

    Example:
        Read the health of a Vault:

        ```python
        from blocks import VaultCredentials

        credentials = VaultCredentials.load("BLOCK_NAME")
        health = credentials.get_client().sys.read_health_status(method="GET")
        ```
    """

    # A refused value must not be quoted by the error.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Vault Credentials"
    _block_type_slug: ClassVar[str] = "vault-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/hashicorp.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl("https://developer.hashicorp.com/vault/docs/auth")
    _description: ClassVar[str] = "A connection to HashiCorp Vault or OpenBao: its address and how to authenticate."

    url: str = Field(title="URL", description="Vault's address, such as https://vault.example.com:8200.")
    # A plain union, told apart by required fields: the dashboard's form cannot switch a discriminated one.
    auth: TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth = Field(
        title="Authentication", description="How to authenticate: with a token, AppRole, Kubernetes or JWT."
    )
    namespace: str | None = Field(default=None, title="Namespace", description="The Vault namespace, if any.")
    ca_certificate: str | None = Field(
        default=None,
        title="CA certificate",
        description="The certificate (PEM) of a private authority that signed Vault's certificate.",
    )
    connect_timeout_seconds: float = Field(
        default=5.0, gt=0, le=60, title="Connect timeout", description="Seconds to wait for a connection."
    )
    read_timeout_seconds: float = Field(
        default=15.0, gt=0, le=60, title="Read timeout", description="Seconds to wait for an answer."
    )

    _client: hvac.Client | None = PrivateAttr(default=None)

    @field_validator("url")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_base_url(value, "url")

    @field_validator("namespace")
    @classmethod
    def _one_path(cls, value: str | None) -> str | None:
        if value and (not value.isascii() or not value.isprintable()):
            raise ValueError("namespace must be printable ASCII without line breaks.")
        return value or None

    @field_validator("ca_certificate")
    @classmethod
    def _readable_certificate(cls, value: str | None) -> str | None:
        if not value:
            return None
        try:
            ssl.create_default_context(cadata=value)
        except (ssl.SSLError, ValueError):
            raise ValueError("ca_certificate must be a certificate in PEM form.") from None
        return value

    def get_client(self) -> hvac.Client:
        """Make a client that is logged in. It blocks; in async code use it in a thread.

        Returns:
            hvac's client.

        Raises:
            hvac.exceptions.VaultError: Vault refused the login.
            ConfigurationError: There is no service account token to log in with.
        """
        session = requests.Session()
        adapter = _BoundedAdapter(self.ca_certificate)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        client = hvac.Client(
            url=self.url,
            token="",
            namespace=self.namespace,
            timeout=(self.connect_timeout_seconds, self.read_timeout_seconds),
            allow_redirects=False,
            session=session,
        )
        self.auth.login(client)
        return client

    async def call(self, doing: str, do: Callable[[hvac.Client], T], *, repeatable: bool = True) -> T:
        """Make a call to Vault, logging in first, and again where the token has ended.

        Args:
            doing: What the call is for, as it reads after "while".
            do: The call.
            repeatable: Whether it may be made again after a failure whose outcome is not known.

        Returns:
            What the call returned.

        Raises:
            ServiceError: Vault failed; which subclass says how.
        """

        async def attempt() -> T:
            try:
                return await self._in_thread(doing, do)
            except ForbiddenError:
                if not await self._token_ended():
                    raise
            return await self._in_thread(doing, do)

        return await (with_retries(attempt) if repeatable else attempt())

    async def _token_ended(self) -> bool:
        """Find out whether a refusal comes from a token that has ended; forget it if so."""
        try:
            await self._in_thread("looking its own token up", lambda client: client.auth.token.lookup_self())
        except ForbiddenError:
            if not self.auth.renewable:
                raise UnauthorizedError(
                    f"Vault at {self.url} does not accept the token: it is wrong, or it has ended."
                ) from None
            self._forget()
            return True
        return False

    async def _in_thread(self, doing: str, do: Callable[[hvac.Client], T]) -> T:
        try:
            async with asyncio.timeout(CALL_DEADLINE_SECONDS + 5):
                return await asyncio.to_thread(self._do, doing, do)
        except TimeoutError:
            raise UnreachableError(
                f"Vault at {self.url} could not be reached while {doing}: no answer in time."
            ) from None

    def _do(self, doing: str, do: Callable[[hvac.Client], T]) -> T:
        # `from None` throughout: a library's text may quote the request.
        if self._client is None:
            self._client = self._log_in()
        try:
            return do(self._client)
        except (vault_exceptions.VaultError, requests.RequestException) as error:
            raise self._translated(error, doing) from None
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UnexpectedAnswerError(f"Vault at {self.url} sent something unexpected while {doing}.") from None

    def _log_in(self) -> hvac.Client:
        try:
            return self.get_client()
        except vault_exceptions.VaultDown as error:
            raise self._translated(error, "logging in") from None
        except (vault_exceptions.InvalidRequest, vault_exceptions.Forbidden, vault_exceptions.Unauthorized):
            raise UnauthorizedError(
                f"Vault at {self.url} refused the login with {self.auth.model_config.get('title')}."
            ) from None
        except (vault_exceptions.VaultError, requests.RequestException) as error:
            raise self._translated(error, "logging in") from None
        except (KeyError, TypeError):
            raise UnexpectedAnswerError(f"Vault at {self.url} sent something unexpected while logging in.") from None

    def _translated(self, error: Exception, doing: str) -> ServiceError:
        where = f"Vault at {self.url}"
        if isinstance(error, requests.RequestException):
            return _unreachable(error, where, doing)
        status = next((s for s, kind in _STATUSES.items() if isinstance(error, kind)), 500)
        if status == SEALED:
            return UnavailableError(f"{where} is sealed or not ready (503) while {doing}.", status=status)
        if "check-and-set parameter did not match" in str(error):
            return ConflictError(f"{where} holds a newer version than the one that was read, while {doing}.")
        return error_for_status(status)(f"{where} answered {status} while {doing}.", status=status)

    def _forget(self) -> None:
        self._client = None

    async def aclose(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.session.close()
            self._forget()

    async def check(self) -> str:
        """Prove that Vault accepts this authentication right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        try:
            await self.call("looking its own token up", lambda client: client.auth.token.lookup_self())
        finally:
            await self.aclose()
        return f"Vault at {self.url} accepts the authentication."


_STATUSES: dict[int, type[Exception]] = {
    400: vault_exceptions.InvalidRequest,
    401: vault_exceptions.Unauthorized,
    403: vault_exceptions.Forbidden,
    404: vault_exceptions.InvalidPath,
    405: vault_exceptions.UnsupportedOperation,
    412: vault_exceptions.PreconditionFailed,
    429: vault_exceptions.RateLimitExceeded,
    500: vault_exceptions.InternalServerError,
    501: vault_exceptions.VaultNotInitialized,
    502: vault_exceptions.BadGateway,
    503: vault_exceptions.VaultDown,
}


def _unreachable(error: requests.RequestException, where: str, doing: str) -> UnreachableError:
    if is_certificate_error(error):
        why, unknown = "its certificate is not trusted", False
    elif isinstance(error, requests.ConnectTimeout) or _never_connected(error):
        why, unknown = "no connection could be made", False
    elif isinstance(error, requests.Timeout):
        why, unknown = "there was no answer in time", True
    else:
        why, unknown = "the exchange broke off", True
    return UnreachableError(f"{where} could not be reached while {doing}: {why}.", outcome_unknown=unknown)


def _never_connected(error: requests.RequestException) -> bool:
    return "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error)


@dataclass(frozen=True)
class _HeldFields(Held):
    """What one path holds, with the fields that are not ours."""

    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)


class VaultSecret(DestinationBlock):
    """One field of a secret in a Vault KV engine, version 2.

    Every write is check-and-set; the other fields at the path and the older versions are kept.

    Attributes:
        credentials: The connection to Vault.
        mount: Where the KV engine is mounted.
        path: The secret's path.
        field: The field that holds the key.

    Example:
        Read a secret in any flow:

        ```python
        from blocks import VaultSecret

        secret = VaultSecret.load("BLOCK_NAME")
        value = await secret.read_secret()
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Vault Secret"
    _block_type_slug: ClassVar[str] = "vault-secret"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/hashicorp.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl("https://developer.hashicorp.com/vault/docs/secrets/kv/kv-v2")
    _description: ClassVar[str] = "One field of a secret in HashiCorp Vault or OpenBao (KV version 2)."

    credentials: VaultCredentials = Field(title="Credentials", description="The connection to Vault.")
    mount: VaultPath = Field(default="secret", title="Mount", description="Where the KV engine (version 2) is mounted.")
    path: VaultPath = Field(title="Path", description="The secret's path below the mount, such as apps/checkout.")
    field: str = Field(
        default="value",
        min_length=1,
        max_length=MAX_PATH_LENGTH,
        title="Field",
        description="The field of the secret that holds the key.",
    )

    @field_validator("field")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("field must not contain line breaks or control characters.")
        return value

    def _place(self) -> str:
        return f"{self.mount}/{self.path} in Vault"

    async def read_held(self) -> Held:
        """Read the field and the secret's version.

        Returns:
            What is held; version 0 where the path does not exist.

        Raises:
            ServiceError: Vault cannot be read.
        """
        return await self._read()

    async def _read(self) -> _HeldFields:
        doing = f"reading {self.mount}/{self.path}"

        def read(client: hvac.Client) -> _HeldFields:
            answer = client.secrets.kv.v2.read_secret_version(
                path=self.path, mount_point=self.mount, raise_on_deleted_version=False
            )
            data, metadata = answer["data"]["data"] or {}, answer["data"]["metadata"]
            value = data.get(self.field)
            return _HeldFields(
                value=None if value is None else SecretStr(str(value)),
                version=int(metadata["version"]),
                fields=data,
            )

        try:
            return await self.credentials.call(doing, read)
        except NotFoundError:
            return _HeldFields(None, 0)

    async def write_held(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:
        """Write the field under check-and-set, then note in the custom metadata who wrote it.

        Args:
            value: The secret to store.
            held: What `read_held` returned.
            written_by: Labels for the custom metadata; those that others put there are kept.

        Raises:
            ConflictError: Somebody else has written since `held` was read.
            ServiceError: Vault cannot be written.
        """
        known = held if isinstance(held, _HeldFields) else await self._read()
        await self._put({**known.fields, self.field: value.get_secret_value()}, known.version, "writing")
        if written_by:
            await self._label(written_by)

    async def _put(self, fields: Mapping[str, Any], version: int | None, verb: str) -> int:
        answer: dict[str, Any] = await self.credentials.call(
            f"{verb} {self.mount}/{self.path}",
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                path=self.path, secret=dict(fields), cas=version, mount_point=self.mount
            ),
            repeatable=False,
        )
        try:
            return int(answer["data"]["version"])
        except (KeyError, TypeError, ValueError):
            raise UnexpectedAnswerError(f"Vault did not confirm the version while {verb} {self.path}.") from None

    async def _label(self, labels: Mapping[str, str]) -> None:
        try:
            await self.credentials.call(
                f"labelling {self.mount}/{self.path}",
                # A merge patch keeps what others put there; hvac's own update would replace it.
                lambda client: client.adapter.request(
                    "patch",
                    format_url("/v1/{mount}/metadata/{path}", mount=self.mount, path=self.path),
                    headers={"Content-Type": "application/merge-patch+json"},
                    json={"custom_metadata": dict(labels)},
                ),
            )
        except ServiceError as error:
            # The secret itself is stored; a token without permission for metadata is a choice, not a failure.
            self.logger.warning("%s holds the new value, but was not labelled: %s", self._place(), error)

    async def fence(self, held: Held) -> Held:
        """Write the same data again, so that a check-and-set write prepared before this moment fails.

        Args:
            held: What `read_held` returned.

        Returns:
            The same content with its new version.

        Raises:
            ConflictError: Somebody else has written since `held` was read.
            ServiceError: Vault cannot be written.
        """
        if not isinstance(held, _HeldFields) or not held.version:
            return held
        version = await self._put(held.fields, held.version, "fencing")
        return _HeldFields(held.value, version, held.fields)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.credentials.aclose()

    async def check(self) -> str:
        """Prove that the secret can be read and written right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        try:
            await self.credentials.call("looking its own token up", lambda client: client.auth.token.lookup_self())
            await self._check_engine()
            await self._check_permissions()
            await self._read()
        finally:
            await self.aclose()
        return f"{self._place()} can be read and written."

    async def _check_engine(self) -> None:
        where = f"Vault at {self.credentials.url}"
        try:
            answer = await self.credentials.call(
                f"looking at the mount {self.mount}",
                lambda client: client.adapter.get(f"/v1/sys/internal/ui/mounts/{self.mount}"),
            )
        except ForbiddenError:
            raise ForbiddenError(
                f"{where} has no KV engine mounted at {self.mount}, or this authentication may not use it."
            ) from None
        found = answer.get("data") if isinstance(answer, dict) else None
        found = found if isinstance(found, dict) else {}
        if found.get("type") != "kv" or (found.get("options") or {}).get("version") != KV_VERSION_2:
            raise ConfigurationError(f"mount: {self.mount} is not a KV engine of version 2 in {where}.")

    async def _check_permissions(self) -> None:
        path = f"{self.mount}/data/{self.path}"
        answer = await self.credentials.call(
            f"asking for the permissions on {path}", lambda client: client.sys.get_capabilities(paths=[path])
        )
        granted = set((answer.get("data") or answer).get(path) or ())
        missing = [name for name in ("read", "create", "update") if name not in granted]
        if "root" not in granted and missing:
            raise ForbiddenError(
                f"Vault at {self.credentials.url} does not grant {', '.join(missing)} on {path} to this authentication."
            )
