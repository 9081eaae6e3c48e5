"""Infisical, cloud or self-hosted: the credentials block and the secret block.

Source of paths and fields: Infisical's API reference, "Universal Auth" and "Secrets"
(https://infisical.com/docs/api-reference/endpoints/deprecated/secrets/read), version 3 of the raw secrets endpoints,
which are the ones that Infisical's own Python SDK calls (1.0.17). Source of what its error answers mean: its server
(https://github.com/Infisical/infisical, backend/src/server/plugins/error-handler.ts and the services behind it).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Self
from urllib.parse import quote

import httpx
from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, ValidationInfo, field_validator

from blocks.destination import Content, DestinationBlock
from blocks.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JsonHttp, Meaning
from blocks.urls import safe_base_url

INFISICAL_URL = "https://app.infisical.com"
TOKEN_MARGIN_SECONDS = 30.0
"""How long before its end a token is given up; a tenth of its life where that is shorter."""
MAX_TOKEN_SECONDS = 10**10
"""The longest life of a token that is believed: three centuries."""
MAX_TEXT = 255
MAX_MESSAGE = 1024
"""How much of an error answer's message is looked at."""


class _LockedOutError(UnauthorizedError):
    """Infisical refuses every login for a while after too many wrong ones."""


class _NoSuchSecretError(NotFoundError):
    """The folder is there and may be read, and holds no such secret."""


_MEANINGS: tuple[tuple[int, str, type[ServiceError], str], ...] = (
    (400, r"Secret already exist", ConflictError, "holds the secret already"),
    (401, r"This identity auth method is temporarily locked", _LockedOutError, "has locked this machine identity out"),
    (
        403,
        r"You are not a member of this project|This project does not belong",
        ForbiddenError,
        "does not count this machine identity among the project's members",
    ),
    (404, r"Secret (with name .* )?not found", _NoSuchSecretError, "holds no such secret"),
    (404, r"Folder\b.* not found", NotFoundError, "knows no such environment or folder"),
    (404, r"Project\b.* not found", NotFoundError, "knows no such project"),
)
"""Where one status stands for several conditions: what the answer's message begins with, and what to say."""


def _meaning(status: int, answer: Mapping[str, Any]) -> Meaning | None:
    if answer.get("error") == "TokenError":
        # Infisical answers 403, not 401, where a token's time is over.
        return UnauthorizedError, "does not accept the token any more"
    message = str(answer.get("message"))[:MAX_MESSAGE]
    found = (row for row in _MEANINGS if row[0] == status and re.match(row[1], message, re.DOTALL))
    return next(((kind, words) for _, _, kind, words in found), None)


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
        self._http = JsonHttp("Infisical", host, transport=transport, sleep=sleep, explain=_meaning)
        self._client_id = client_id
        self._client_secret = client_secret
        self._monotonic = monotonic
        self._token: SecretStr | None = None
        self._token_ends = 0.0
        self._login = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.__aexit__(None, None, None)

    async def log_in(self) -> SecretStr:
        """Log in, or reuse the token until it ends: a client secret may be limited in how often it logs in.

        Returns:
            The token.

        Raises:
            UnauthorizedError: The client id or the client secret is wrong.
            ServiceError: Infisical failed.
        """
        async with self._login:
            if self._token is None or self._monotonic() >= self._token_ends:
                self._token, lives = await self._new_token()
                self._token_ends = self._monotonic() + lives - min(TOKEN_MARGIN_SECONDS, lives / 10)
            return self._token

    async def _new_token(self) -> tuple[SecretStr, float]:
        """Log in; returns the token and the seconds it lives."""
        answer = await self._ask_for_token()
        token, lives = answer.get("accessToken"), answer.get("expiresIn")
        if not isinstance(token, str) or not token or not isinstance(lives, int) or lives > MAX_TOKEN_SECONDS:
            raise UnexpectedAnswerError(
                f"Infisical's answer lacks the field accessToken or expiresIn while logging in at {self._http.host}."
            )
        # 0 stands for a token that never ends.
        return SecretStr(token), lives if lives > 0 else math.inf

    async def _ask_for_token(self) -> dict[str, Any]:
        where = f"Infisical at {self._http.host}"
        body = {"clientId": self._client_id, "clientSecret": self._client_secret.get_secret_value()}
        try:
            return await self._http.request(
                "POST", "api/v1/auth/universal-auth/login", doing="logging in", headers={}, json_body=body
            )
        except _LockedOutError:
            raise
        except UnauthorizedError as error:
            raise UnauthorizedError(
                f"{where} refused the login: the client id or the client secret is wrong, or has ended.",
                status=error.status,
            ) from None
        except ForbiddenError as error:
            raise ForbiddenError(
                f"{where} does not let this machine identity log in from this address.", status=error.status
            ) from None
        except NotFoundError as error:
            raise NotFoundError(
                f"{where} has no universal auth for this login: the host or the client id is wrong.",
                status=error.status,
            ) from None

    async def request(self, method: str, path: str, *, doing: str, **how: Any) -> dict[str, Any]:
        """Make one call, logging in first, and once more where the token has ended.

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
        token = await self.log_in()
        try:
            return await self._with(token, method, path, doing, how)
        except UnauthorizedError:
            # A refused token means that nothing was done, so that even a create may be made again.
            if self._token is token:
                self._token = None
        return await self._with(await self.log_in(), method, path, doing, how)

    async def _with(
        self, token: SecretStr, method: str, path: str, doing: str, how: Mapping[str, Any]
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
        return await self._http.request(method, path, doing=doing, headers=headers, **how)


def _text(field: str, value: str) -> str:
    # Infisical cuts blanks off both ends, so that such a name would be another one there.
    if not value or len(value) > MAX_TEXT or not value.isprintable() or value != value.strip() or value in {".", ".."}:
        raise ValueError(f"{field} must be 1 to {MAX_TEXT} printable characters, without blanks at its ends.")
    return value


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
        try:
            await credentials.check()
        finally:
            await credentials.aclose()
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
    client_id: str = Field(title="Client ID", description="The machine identity's client id.")
    client_secret: SecretStr = Field(
        min_length=1, max_length=MAX_TEXT, title="Client secret", description="The machine identity's client secret."
    )

    _client: InfisicalClient | None = PrivateAttr(default=None)

    @field_validator("host")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_base_url(value, "host")

    @field_validator("client_id")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return _text("client_id", value)

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

    def apart(self) -> Self:
        """Copy the block, without the connection that it has opened.

        Returns:
            The copy, which opens its own.
        """
        copy = self.model_copy()
        copy._client = None  # noqa: SLF001 - of this very class
        return copy

    async def check(self) -> str:
        """Prove that the machine identity can log in right now; `aclose` closes the connection.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        await self.get_client().log_in()
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
        value = secret.read_secret()
        ```

        In async code, load it with `await InfisicalSecret.aload("BLOCK_NAME")` and read it with
        `await secret.aread_secret()`.
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
    def _one_line(cls, value: str, info: ValidationInfo) -> str:
        return _text(str(info.field_name), value)

    @field_validator("name")
    @classmethod
    def _storable(cls, value: str) -> str:
        if set(":/") & set(value):
            raise ValueError("name must not contain a colon or a slash: Infisical does not store such a secret.")
        return value

    @field_validator("path")
    @classmethod
    def _folder(cls, value: str) -> str:
        parts = [part for part in value.split("/") if part]
        if len(value) > MAX_TEXT or not value.isprintable() or {".", ".."} & set(parts) or value != value.strip():
            raise ValueError("path must be a folder such as /apps/checkout, without '.' or '..' segments.")
        return "/" + "/".join(parts)

    def _apart(self) -> Self:
        return self.model_copy(update={"credentials": self.credentials.apart()})

    def place(self) -> str:
        """Name the place for messages.

        Returns:
            The secret's name, path and environment, and the project.
        """
        return f"{self.name} at {self.path} in {self.environment} of the Infisical project {self.project_id}"

    async def read_content(self) -> Content:
        """Read the secret itself, neither expanded nor imported from elsewhere.

        Returns:
            The secret with its version, which Infisical counts but does not check; a `Content` without a value only
            where Infisical answers that the folder is there and the secret is not. Any other 404 is an error, so that
            a proxy's answer is never taken for an empty place.

        Raises:
            NotFoundError: The project, the environment or the folder is unknown.
            ServiceError: Infisical cannot be read.
        """
        doing = f"reading {self.place()}"
        params: dict[str, str | int] = {
            **self._where(),
            "viewSecretValue": "true",
            "expandSecretReferences": "false",
            "include_imports": "false",
        }
        try:
            secret = (await self._request("GET", doing, params=params)).get("secret")
        except _NoSuchSecretError:
            return Content(None)
        secret = secret if isinstance(secret, dict) else {}
        value, version = secret.get("secretValue"), secret.get("version")
        if secret.get("secretValueHidden") is True:
            raise ForbiddenError(f"Infisical hides the value from this machine identity while {doing}.")
        if not isinstance(value, str):
            raise UnexpectedAnswerError(f"Infisical's answer lacks the field secret.secretValue while {doing}.")
        return Content(SecretStr(value), version if isinstance(version, int) else None)

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - see below
        """Create the secret, or change its value and nothing else.

        Args:
            value: The secret to store.
            content: What `read_content` returned.
            written_by: Not stored: Infisical's metadata and comments belong to the users, and a change replaces them.

        Raises:
            ConflictError: Somebody else has made the secret since `content` was read.
            RejectedError: The project's change policy keeps the change back until a person approves it.
            ServiceError: Infisical cannot be written. A create whose outcome is unknown is not made again here; a
                change of the value may be, because it ends in the same state.
        """
        body = {**self._where(), "type": "shared", "secretValue": value.get_secret_value()}
        doing = f"writing {self.place()}"
        if content.value is None:
            answer = await self._request("POST", doing, json_body=body, repeatable=False)
        else:
            answer = await self._request("PATCH", doing, json_body=body)
        if "approval" in answer:
            raise RejectedError(
                f"Infisical keeps the change back until a person approves it while {doing}: reject that request, and "
                "let this machine identity write without approval."
            )
        if "secret" not in answer:
            raise UnexpectedAnswerError(f"Infisical's answer lacks the field secret while {doing}.")

    def _where(self) -> dict[str, str]:
        return {"workspaceId": self.project_id, "environment": self.environment, "secretPath": self.path}

    async def _request(self, method: str, doing: str, **how: Any) -> dict[str, Any]:
        path = f"api/v3/secrets/raw/{quote(self.name, safe='')}"
        return await self.credentials.get_client().request(method, path, doing=doing, **how)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.credentials.aclose()

    async def check(self) -> str:
        """Prove that the machine identity can read this place right now; whether it may write shows on a write only.

        Returns:
            One sentence that says what works, and whether the secret exists yet.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        content = await self.read_content()
        return f"{self.place()} can be read" + (", and does not exist yet." if content.value is None else ".")
