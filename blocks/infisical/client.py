"""The client of Infisical's API, with universal auth."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from pydantic import SecretStr

from blocks.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    ServiceError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JsonHttp, Meaning

TOKEN_MARGIN_SECONDS = 30.0
"""How long before its expiry a token is replaced; at most a tenth of its lifetime."""
MAX_TOKEN_SECONDS = 10**10
"""The longest accepted lifetime of a token: three centuries."""
MAX_MESSAGE = 1024
"""How many characters of an error message are examined."""


class _LockedOutError(RateLimitedError):
    """Infisical refuses all logins for a while after too many failed ones."""


class NoSuchSecretError(NotFoundError):
    """The folder exists and may be read, but does not hold the secret."""


_MEANINGS: tuple[tuple[int, str, type[ServiceError], str], ...] = (
    (400, r"Secret already exist", ConflictError, "holds the secret already"),
    (401, r"This identity auth method is temporarily locked", _LockedOutError, "has locked this machine identity out"),
    (
        403,
        r"You are not a member of this project|This project does not belong",
        ForbiddenError,
        "says that this machine identity is not a member of the project",
    ),
    (404, r"Secret (with name .* )?not found", NoSuchSecretError, "holds no such secret"),
    (404, r"Folder\b.* not found", NotFoundError, "knows no such environment or folder"),
    (404, r"Project\b.* not found", NotFoundError, "knows no such project"),
)
"""Statuses with several meanings: the pattern of the response's message, the error, and our words for it."""


def _meaning(status: int, answer: Mapping[str, Any]) -> Meaning | None:
    if answer.get("error") == "TokenError":
        # Infisical answers 403, not 401, to an expired token.
        return UnauthorizedError, "does not accept the token any more"
    message = str(answer.get("message"))[:MAX_MESSAGE]
    found = (row for row in _MEANINGS if row[0] == status and re.match(row[1], message, re.DOTALL))
    return next(((kind, words) for _, _, kind, words in found), None)


class InfisicalClient:
    """Infisical's secrets over one HTTP connection, logged in with universal auth.

    Args:
        host: Infisical's base URL.
        client_id: The machine identity's client id.
        client_secret: The machine identity's client secret.
        block: The block that holds the two, for messages; empty if it is not stored.
        transport: A transport for tests; real sockets by default.
        sleep: Sleeps for a number of seconds between attempts.
        monotonic: A clock in seconds, which determines when a token expires.
    """

    def __init__(
        self,
        host: str,
        client_id: str,
        client_secret: SecretStr,
        *,
        block: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = JsonHttp("Infisical", host, block=block, transport=transport, sleep=sleep, explain=_meaning)
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
        """Log in, or reuse the token until it expires: the number of uses of a client secret may be limited.

        Returns:
            The token.

        Raises:
            UnauthorizedError: The client id or the client secret is wrong.
            ServiceError: The call failed.
        """
        async with self._login:
            if self._token is None or self._monotonic() >= self._token_ends:
                self._token, lives = await self._new_token()
                self._token_ends = self._monotonic() + lives - min(TOKEN_MARGIN_SECONDS, lives / 10)
            return self._token

    async def _new_token(self) -> tuple[SecretStr, float]:
        """Log in and return the token and its lifetime in seconds."""
        answer = await self._ask_for_token()
        token, lives = answer.get("accessToken"), answer.get("expiresIn")
        if not isinstance(token, str) or not token or not isinstance(lives, int) or lives > MAX_TOKEN_SECONDS:
            raise UnexpectedAnswerError(
                f"Infisical's answer lacks the field accessToken or expiresIn while logging in at {self._http.host}."
            )
        # 0 stands for a token that does not expire.
        return SecretStr(token), lives if lives > 0 else math.inf

    async def _ask_for_token(self) -> dict[str, Any]:
        where = f"Infisical at {self._http.host}"
        body = {"clientId": self._client_id, "clientSecret": self._client_secret.get_secret_value()}
        try:
            return await self._http.request(
                "POST", "api/v1/auth/universal-auth/login", doing="logging in", headers={}, json_body=body
            )
        except UnauthorizedError as error:
            raise UnauthorizedError(
                f"{where} refused the login: the client id or the client secret is wrong, or has expired.",
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
        """Make one call; log in first, and again if the token has expired.

        Args:
            method: The HTTP method.
            path: The path, with variable parts percent-encoded.
            doing: The purpose of the call, as it reads after "while".
            **how: `json_body`, `params`, `repeatable` and `attempts` of `JsonHttp.request`.

        Returns:
            The JSON object of the response.

        Raises:
            ServiceError: The call failed.
        """
        token = await self.log_in()
        try:
            return await self._with(token, method, path, doing, how)
        except UnauthorizedError as error:
            # A refused token means that the call had no effect, so even a create may be repeated.
            if self._token is token:
                self._token = None
            if how.get("attempts") == 1:
                raise UnauthorizedError(str(error), status=error.status, retryable=True) from None
        return await self._with(await self.log_in(), method, path, doing, how)

    async def _with(
        self, token: SecretStr, method: str, path: str, doing: str, how: Mapping[str, Any]
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
        return await self._http.request(method, path, doing=doing, headers=headers, **how)
