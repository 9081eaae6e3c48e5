"""The login block of Vault."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

import hvac
from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, field_validator

from blocks.errors import UnexpectedAnswerError
from blocks.http import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS
from blocks.urls import safe_base_url
from blocks.vault.auth import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from blocks.vault.connection import VaultConnection
from blocks.vault.paths import valid_path

LOOKING_UP = "looking the token up"


def _trust(pem: str) -> ssl.SSLContext:
    # The lines of a PEM text that was pasted into a one-line input have run together.
    found = re.findall(r"-----BEGIN CERTIFICATE-----([^-]+)-----END CERTIFICATE-----", pem)
    if not found:
        raise ValueError("no certificate")
    return ssl.create_default_context(cadata=b"".join(base64.b64decode("".join(text.split())) for text in found))


class VaultCredentials(CredentialsBlock):
    """A login at HashiCorp Vault.

    Attributes:
        url: Where Vault is.
        namespace: The namespace that everything happens in.
        auth: How to log in.
        ca_certificate: The private authority that issued Vault's certificate.
        connect_timeout_seconds: How long to wait for a connection.
        read_timeout_seconds: How long to wait for an answer.

    Example:
        Read a secret with hvac:

        ```python
        from blocks import VaultCredentials

        credentials = VaultCredentials.load("BLOCK_NAME")

        client = credentials.get_client()
        secret = client.secrets.kv.v2.read_secret("app", raise_on_deleted_version=True)
        ```
    """

    # A refused value must not be quoted by the error.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Vault Credentials"
    _block_type_slug: ClassVar[str] = "vault-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/hashicorp.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl("https://developer.hashicorp.com/vault/docs/auth")
    _description: ClassVar[str] = (
        "A login at HashiCorp Vault, with a token, AppRole, a Kubernetes service account or a JWT."
    )

    url: str = Field(
        title="URL",
        description="Where Vault is, such as https://vault.example.com:8200; plain http on loopback only.",
    )
    namespace: str | None = Field(
        default=None,
        title="Namespace",
        description="The namespace that the login and the secrets are in, where Vault has namespaces.",
    )
    auth: TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth = Field(
        title="Login", description="How to log in; a new token is fetched when one ends, except for the method Token."
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
        description="How many seconds to wait for a connection.",
    )
    read_timeout_seconds: float = Field(
        default=READ_TIMEOUT_SECONDS,
        gt=0,
        le=300,
        title="Read timeout",
        description="How many seconds to wait for an answer.",
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
        """Give the one session of this block; it is opened and logged in by its first call.

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
                sleep=self._sleep,
            )
        return self._connection

    def get_client(self) -> hvac.Client:
        """Log in; the client is the same one each time.

        Returns:
            hvac's client, logged in.

        Raises:
            KeyRotationError: Vault cannot be reached, or does not accept the login.
        """
        return self.connection().logged_in()

    def apart(self) -> Self:
        """Copy the block, without the connection that it has opened.

        Returns:
            The copy, which opens its own.
        """
        copy = self.model_copy()
        copy._connection = None  # noqa: SLF001 - of this very class
        return copy

    async def check(self) -> str:
        """Prove that Vault accepts this login right now; `aclose` closes the connection.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        await self._look_token_up()
        return f"Vault at {self.connection().host} accepts this login."

    async def token_ends(self) -> datetime | None:
        """Say when a token that somebody made ends; nobody can log in with it again.

        Returns:
            The moment, UTC; `None` for a token that does not end, and for every other way to log in, which fetches a
            new token when one ends.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
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
        """Close the connections that this block has opened."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
