"""Infisical, cloud or self-hosted: the credentials block and the secret block.

Source of paths and fields: Infisical's API reference, "Universal Auth" and "Secrets"
(https://infisical.com/docs/api-reference/endpoints/secrets/read), version 3 of the raw secrets endpoints, which are the
ones that Infisical's own Python SDK calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, field_validator

from blocks.errors import (
    ForbiddenError,
    NotFoundError,
    RejectedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JsonHttp
from blocks.secrets import DestinationBlock, Held
from blocks.urls import safe_base_url

INFISICAL_URL = "https://app.infisical.com"
TOKEN_MARGIN_SECONDS = 30.0
"""How long before its end a token is given up."""
MAX_TEXT = 255


class InfisicalClient:
    """Infisical's secrets over one HTTP connection, logged in with universal auth.

    Args:
        host: Where Infisical is.
        client_id: The machine identity's client id.
        client_secret: Its client secret.
        transport: A transport for tests; real sockets without it.
        sleep: How to wait between attempts, in seconds.
        monotonic: A clock in seconds, by which a token's end is known.
    """

    def __init__(
        self,
        host: str,
        client_id: str,
        client_secret: SecretStr,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = JsonHttp("Infisical", host, transport=transport, sleep=sleep)
        self._client_id = client_id
        self._client_secret = client_secret
        self._monotonic = monotonic
        self._token: SecretStr | None = None
        self._token_ends = 0.0

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.__aexit__(None, None, None)

    async def log_in(self) -> SecretStr:
        """Log in, or reuse the token until it ends.

        Returns:
            The token.

        Raises:
            UnauthorizedError: The client id or the client secret is wrong.
            ServiceError: Infisical failed.
        """
        if self._token is not None and self._monotonic() < self._token_ends:
            return self._token
        body = {"clientId": self._client_id, "clientSecret": self._client_secret.get_secret_value()}
        try:
            answer = await self._http.request(
                "POST", "api/v1/auth/universal-auth/login", doing="logging in", headers={}, json_body=body
            )
        except (UnauthorizedError, ForbiddenError, NotFoundError, RejectedError):
            raise UnauthorizedError(
                f"Infisical at {self._http.host} refused the login: the client id or the client secret is wrong."
            ) from None
        token, lives = answer.get("accessToken"), answer.get("expiresIn")
        if not isinstance(token, str) or not token or not isinstance(lives, int):
            raise UnexpectedAnswerError("Infisical's answer lacks the field accessToken or expiresIn while logging in.")
        self._token, self._token_ends = SecretStr(token), self._monotonic() + lives - TOKEN_MARGIN_SECONDS
        return self._token

    async def request(self, method: str, path: str, *, doing: str, **how: Any) -> dict[str, Any]:
        """Make one call, logging in first, and again where the token has ended.

        Args:
            method: The HTTP method.
            path: The path, each variable part already percent-encoded.
            doing: What the call is for, as it reads after "while".
            **how: `json_body`, `params` and `repeatable` of `JsonHttp.request`.

        Returns:
            The JSON object of the answer.

        Raises:
            ServiceError: Infisical failed.
        """
        try:
            return await self._with_token(method, path, doing, how)
        except UnauthorizedError:
            self._token = None
            return await self._with_token(method, path, doing, how)

    async def _with_token(self, method: str, path: str, doing: str, how: dict[str, Any]) -> dict[str, Any]:
        token = await self.log_in()
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
        return await self._http.request(method, path, doing=doing, headers=headers, **how)


class InfisicalCredentials(CredentialsBlock):
    """A connection to Infisical: a machine identity with universal auth.

    Attributes:
        host: Where Infisical is.
        client_id: The machine identity's client id.
        client_secret: Its client secret.

    Example:
        Prove that the machine identity can log in:

        ```python
        from blocks import InfisicalCredentials

        credentials = InfisicalCredentials.load("BLOCK_NAME")
        await credentials.check()
        ```
    """

    # A refused value must not be quoted by the error.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Infisical Credentials"
    _block_type_slug: ClassVar[str] = "infisical-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/Infisical.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl(
        "https://infisical.com/docs/documentation/platform/identities/universal-auth"
    )
    _description: ClassVar[str] = "A connection to Infisical: a machine identity with universal auth."

    host: str = Field(
        default=INFISICAL_URL, title="Host", description="Where Infisical is: its cloud, or your own instance."
    )
    client_id: str = Field(
        min_length=1, max_length=MAX_TEXT, title="Client ID", description="The machine identity's client id."
    )
    client_secret: SecretStr = Field(title="Client secret", description="The machine identity's client secret.")

    _client: InfisicalClient | None = PrivateAttr(default=None)

    @field_validator("host")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_base_url(value, "host")

    def get_client(self) -> InfisicalClient:
        """Open the connection, once per block.

        Returns:
            The client; `aclose` closes it.
        """
        if self._client is None:
            self._client = InfisicalClient(self.host, self.client_id, self.client_secret)
        return self._client

    async def aclose(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def check(self) -> str:
        """Prove that the machine identity can log in right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        try:
            await self.get_client().log_in()
        finally:
            await self.aclose()
        return f"Infisical at {self.host} accepts the machine identity."


class InfisicalSecret(DestinationBlock):
    """One secret in a project, environment and folder of Infisical; other secrets are never touched.

    Infisical has no check-and-set: the rotation's concurrency slot and the ledger keep two runs apart. It keeps older
    versions of a secret, where its plan does so. Comment, tags and metadata of the secret stay as they are.

    Attributes:
        credentials: The connection to Infisical.
        project_id: The project.
        environment: The environment's slug.
        path: The folder.
        name: The secret's name.

    Example:
        Read a secret in any flow:

        ```python
        from blocks import InfisicalSecret

        secret = InfisicalSecret.load("BLOCK_NAME")
        value = await secret.read_secret()
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Infisical Secret"
    _block_type_slug: ClassVar[str] = "infisical-secret"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/Infisical.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl(
        "https://infisical.com/docs/documentation/platform/secrets-mgmt/project"
    )
    _description: ClassVar[str] = "One secret in a project, environment and folder of Infisical."

    credentials: InfisicalCredentials = Field(title="Credentials", description="The connection to Infisical.")
    project_id: str = Field(title="Project ID", description="The project's id, from its settings.")
    environment: str = Field(title="Environment", description="The environment's slug, such as prod.")
    path: str = Field(default="/", title="Path", description="The folder, such as / or /apps/checkout.")
    name: str = Field(title="Name", description="The secret's name, such as OPENROUTER_API_KEY.")

    @field_validator("project_id", "environment", "name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value or len(value) > MAX_TEXT or not value.isprintable() or value in (".", ".."):
            raise ValueError(f"must be 1 to {MAX_TEXT} printable characters.")
        return value

    @field_validator("path")
    @classmethod
    def _folder(cls, value: str) -> str:
        parts = [part for part in value.split("/") if part]
        if len(value) > MAX_TEXT or not value.isprintable() or any(part in (".", "..") for part in parts):
            raise ValueError("path must be a folder such as /apps/checkout, without '.' or '..' segments.")
        return "/" + "/".join(parts)

    def _place(self) -> str:
        return f"{self.name} in {self.environment}{self.path} of Infisical"

    async def read_held(self) -> Held:
        """Read the secret.

        Returns:
            What is held; a `Held` without a value where there is no such secret yet.

        Raises:
            ServiceError: Infisical cannot be read. An unknown project, environment or folder shows on the first write
                only, because Infisical answers 404 for each of them as for a missing secret.
        """
        doing = f"reading {self._place()}"
        params: dict[str, str | int] = {
            **self._where(),
            "viewSecretValue": "true",
            "expandSecretReferences": "false",
            "include_imports": "false",
        }
        try:
            answer = await self._request("GET", doing, params=params)
        except NotFoundError:
            return Held(None)
        secret = answer.get("secret")
        value = secret.get("secretValue") if isinstance(secret, dict) else None
        if not isinstance(value, str):
            raise UnexpectedAnswerError(f"Infisical's answer lacks the field secret.secretValue while {doing}.")
        version = secret.get("version") if isinstance(secret, dict) else None
        return Held(SecretStr(value), version if isinstance(version, int) else None)

    async def write_held(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - see below
        """Create the secret, or change its value and nothing else.

        Args:
            value: The secret to store.
            held: What `read_held` returned.
            written_by: Not stored: Infisical's metadata and comments belong to the users, and a change replaces them.

        Raises:
            ServiceError: Infisical cannot be written.
        """
        body = {**self._where(), "type": "shared", "secretValue": value.get_secret_value()}
        doing = f"writing {self._place()}"
        if held.value is None:
            await self._request("POST", doing, json_body=body, repeatable=False)
        else:
            await self._request("PATCH", doing, json_body=body)

    def _where(self) -> dict[str, str]:
        return {"workspaceId": self.project_id, "environment": self.environment, "secretPath": self.path}

    async def _request(self, method: str, doing: str, **how: Any) -> dict[str, Any]:
        path = f"api/v3/secrets/raw/{quote(self.name, safe='')}"
        return await self.credentials.get_client().request(method, path, doing=doing, **how)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.credentials.aclose()

    async def check(self) -> str:
        """Prove that the folder can be read right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        doing = f"listing {self.environment}{self.path}"
        params: dict[str, str | int] = {**self._where(), "viewSecretValue": "false", "include_imports": "false"}
        try:
            await self.credentials.get_client().request("GET", "api/v3/secrets/raw", doing=doing, params=params)
        except NotFoundError:
            raise NotFoundError(
                f"Infisical at {self.credentials.host} has no folder {self.path} in environment {self.environment} "
                f"of the project {self.project_id}."
            ) from None
        except ForbiddenError:
            raise ForbiddenError(
                f"Infisical at {self.credentials.host} does not let this machine identity read {self.environment}"
                f"{self.path} of the project {self.project_id}."
            ) from None
        finally:
            await self.aclose()
        return f"{self._place()} can be read."
