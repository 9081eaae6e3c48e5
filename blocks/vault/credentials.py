"""The credentials block of Vault."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

import hvac
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, field_validator

from blocks.errors import UnexpectedAnswerError
from blocks.http import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS
from blocks.login import LoginBlock
from blocks.stored import stored_name
from blocks.urls import safe_base_url
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from blocks.vault.connection import VaultConnection
from blocks.vault.paths import valid_path

LOOKING_UP = "looking the token up"


def _trust(pem: str) -> ssl.SSLContext:
    # A PEM text pasted into a one-line input has lost its line breaks.
    found = re.findall(r"-----BEGIN CERTIFICATE-----([^-]+)-----END CERTIFICATE-----", pem)
    if not found:
        raise ValueError("no certificate")
    return ssl.create_default_context(cadata=b"".join(base64.b64decode("".join(text.split())) for text in found))


class VaultCredentials(LoginBlock):
    """A login to HashiCorp Vault.

    Attributes:
        url: Vault's base URL.
        namespace: The namespace of every call.
        auth: The auth method.
        ca_certificate: The certificate of the private authority that issued Vault's certificate.
        connect_timeout_seconds: The connect timeout in seconds.
        read_timeout_seconds: The read timeout in seconds.

    Example:
        Read a secret with hvac:

        ```python
        from blocks import VaultCredentials

        credentials = VaultCredentials.load("BLOCK_NAME")

        client = credentials.get_client()
        secret = client.secrets.kv.v2.read_secret("app", raise_on_deleted_version=True)
        ```
    """

    # An error must not quote a refused value.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Vault Credentials"
    _block_type_slug: ClassVar[str] = "vault-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/hashicorp.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl("https://developer.hashicorp.com/vault/docs/auth")
    _description: ClassVar[str] = (
        "A login to HashiCorp Vault, with a token, AppRole, a Kubernetes service account or a JWT."
        " To try a saved one, run check-connections with its name."
    )

    url: str = Field(
        title="URL",
        description="Vault's base URL, such as https://vault.example.com:8200; plain http on loopback only.",
    )
    namespace: str | None = Field(
        default=None,
        title="Namespace",
        description="The namespace of the login and the secrets, if Vault has namespaces.",
    )
    auth: TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth = Field(
        title="Login", description="The auth method. Expired tokens are replaced automatically, except with Token."
    )
    ca_certificate: str | None = Field(
        default=None,
        title="CA certificate",
        description="The certificate of the private authority that issued Vault's certificate, as PEM text.",
    )
    connect_timeout_seconds: float = Field(
        default=CONNECT_TIMEOUT_SECONDS,
        gt=0,
        le=60,
        title="Connect timeout",
        description="Connect timeout in seconds.",
    )
    read_timeout_seconds: float = Field(
        default=READ_TIMEOUT_SECONDS,
        gt=0,
        le=300,
        title="Read timeout",
        description="Read timeout in seconds.",
    )

    _connection: VaultConnection | None = PrivateAttr(default=None)
    _sleep: Callable[[float], Awaitable[None]] = PrivateAttr(default_factory=lambda: asyncio.sleep)

    @field_validator("url")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_base_url(value, "url")

    @field_validator("namespace")
    @classmethod
    def _namespace_of_names(cls, value: str | None) -> str | None:
        if value is None or not value.strip().strip("/"):
            return None
        if not value.isascii() or " " in value.strip():
            raise ValueError("namespace must be plain text without spaces.")
        return valid_path(value, "namespace")

    @field_validator("ca_certificate")
    @classmethod
    def _certificates(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        try:
            _trust(value)
        except (ValueError, ssl.SSLError):
            raise ValueError(
                "ca_certificate must be one or more certificates in PEM, from BEGIN CERTIFICATE to END CERTIFICATE."
            ) from None
        return value

    def connection(self) -> VaultConnection:
        """Return the session of this block; its first call opens it and logs in.

        Returns:
            The session.
        """
        if self._connection is None:
            self._connection = VaultConnection(
                self.url,
                self.auth,
                namespace=self.namespace,
                trust=_trust(self.ca_certificate) if self.ca_certificate else None,
                connect_timeout=self.connect_timeout_seconds,
                read_timeout=self.read_timeout_seconds,
                block=stored_name(self),
                sleep=self._sleep,
            )
        return self._connection

    def get_client(self) -> hvac.Client:
        """Return hvac's client, logged in; it is the same one each time.

        Returns:
            The client.

        Raises:
            KeyRotationError: Vault cannot be reached, or refuses the login.
        """
        return self.connection().logged_in()

    def unopened_copy(self) -> Self:
        """Return a copy of the block without its open connection.

        Returns:
            The copy, which opens its own connection.
        """
        copy = self.model_copy()
        copy._connection = None  # noqa: SLF001 - of this very class
        return copy

    async def check(self) -> str:
        """Check that Vault accepts the login; close the connection with `aclose`.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """
        await self._look_token_up()
        return f"Vault at {self.connection().host} accepts this login."

    async def login_ends(self) -> datetime | None:
        """Return when the block's own token expires.

        Returns:
            The expiry, UTC; `None` for a token that does not expire, and for every other auth method, which logs in
            again when its token expires.

        Raises:
            KeyRotationError: The expiry cannot be looked up; the message says why.
        """
        if not isinstance(self.auth, TokenAuth):
            return None
        ends = (await self._look_token_up()).get("expire_time")
        try:
            return None if ends is None else datetime.fromisoformat(str(ends)).astimezone(UTC)
        except ValueError:
            raise UnexpectedAnswerError(f"Vault's answer is not as documented while {LOOKING_UP}.") from None

    async def _look_token_up(self) -> dict[str, Any]:
        data = (await self.connection().call(LOOKING_UP, lambda client: client.auth.token.lookup_self())).get("data")
        if not isinstance(data, dict):
            raise UnexpectedAnswerError(f"Vault's answer is not as documented while {LOOKING_UP}.")
        return data

    async def aclose(self) -> None:
        """Close the open connections."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
