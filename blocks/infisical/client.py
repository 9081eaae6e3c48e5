"""The client of Infisical: a login by universal auth, and its API."""

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
    ServiceError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JsonHttp, Meaning

TOKEN_MARGIN_SECONDS = 30.0
"""How long before its end a token is given up; a tenth of its life where that is shorter."""
MAX_TOKEN_SECONDS = 10**10
"""The longest life of a token that is believed: three centuries."""
MAX_MESSAGE = 1024
"""How much of an error answer's message is looked at."""


class _LockedOutError(UnauthorizedError):
    """Infisical refuses every login for a while after too many wrong ones."""


class NoSuchSecretError(NotFoundError):
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
    (404, r"Secret (with name .* )?not found", NoSuchSecretError, "holds no such secret"),
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
            **how: `json_body`, `params`, `repeatable` and `attempts` of `JsonHttp.request`.

        Returns:
            The JSON object of the answer.

        Raises:
            ServiceError: Infisical failed.
        """
        token = await self.log_in()
        try:
            return await self._with(token, method, path, doing, how)
        except UnauthorizedError as error:
            # A refused token means that nothing was done, so that even a create may be made again.
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
