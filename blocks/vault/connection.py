"""A session with HashiCorp Vault over hvac: bounded responses, no redirects, a deadline, and this project's errors."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import hvac
import requests
import urllib3.exceptions
from hvac.exceptions import VaultError
from requests.adapters import HTTPAdapter

from blocks.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    concerning,
    error_for_status,
)
from blocks.http import MAX_ANSWER_BYTES, is_certificate_error, retry_after_seconds, with_retries
from blocks.threads import in_own_thread
from blocks.urls import may_use_proxy
from blocks.vault.adapter import ExactAdapter

CAS_MISMATCH = "check-and-set parameter did not match"
"""The text of Vault's 400 for a version mismatch; there is no code for it."""
READ_BYTES = 64 * 1024

Request = Callable[[hvac.Client], Any]


class Login(Protocol):
    """An auth method.

    Attributes:
        where: The auth method's path, such as `auth/approle`; `None` for a token, which cannot log in again.
    """

    @property
    def where(self) -> str | None:
        """The auth method's path."""

    def log_in(self, client: hvac.Client) -> Any:
        """Set the client's token."""


class _AnswerTooLargeError(Exception):
    """The response exceeds the limit."""


_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)
"""The deadline of one attempt (monotonic clock), which keeps the abandoned thread of an attempt that timed out from
starting another request."""


class _Transport(HTTPAdapter):
    """Reads a bounded response before a deadline; trusts only the private certificate authority, if there is one.

    It decides about the proxy too: a session that ignores the environment would ignore its authorities as well.

    Args:
        connect: The connect timeout in seconds.
        read: The read timeout in seconds.
        trust: The trusted certificate authorities; those of requests by default.
    """

    def __init__(self, connect: float, read: float, trust: ssl.SSLContext | None) -> None:
        self._connect, self._read, self._trust = connect, read, trust
        super().__init__()

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: bool | str, cert: Any = None
    ) -> Any:
        """Return the TLS settings of a connection."""
        if self._trust is None:
            return super().build_connection_pool_key_attributes(request, verify, cert)
        host, _ = super().build_connection_pool_key_attributes(request, True, cert)
        return host, {"ssl_context": self._trust}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Add the certificate authorities of requests, unless a private one is trusted."""
        if self._trust is None:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call] # requests has none

    def send(self, request: requests.PreparedRequest, *_args: Any, **how: Any) -> requests.Response:
        """Send one request and read its response, before requests handles redirects or reads the body.

        Raises:
            TimeoutError: The deadline has passed.
            _AnswerTooLargeError: The response is too large.
        """
        deadline = _deadline.get() or time.monotonic() + self._connect + self._read
        left = _time_left(deadline)
        how |= {"stream": True, "timeout": (min(self._connect, left), min(self._read, left))}
        if not may_use_proxy(str(request.url)):
            how["proxies"] = {}
        response = super().send(request, **how)
        try:
            response._content = _bounded(response, deadline)  # noqa: SLF001 - as requests does itself
        finally:
            response.close()
        return response


def _time_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _bounded(response: requests.Response, deadline: float) -> bytes:
    body = bytearray()
    # `read1` returns what has arrived, so a slow response cannot outlast the deadline.
    while chunk := response.raw.read1(READ_BYTES, decode_content=True):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise _AnswerTooLargeError
        _time_left(deadline)
    return bytes(body)


def _is_from_vault(body: Any) -> bool:
    # A proxy's 404 must not pass for an absent secret: a key published there would count as unpublished.
    return isinstance(body, dict) and (isinstance(body.get("errors"), list) or isinstance(body.get("data"), dict))


def _was_connected(error: BaseException) -> bool:
    reason = getattr(error.args[0], "reason", None) if error.args else None
    never = (
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ConnectTimeoutError,
        urllib3.exceptions.ProxyError,
    )
    return not isinstance(error, requests.ConnectTimeout) and not isinstance(reason, never)


class VaultConnection:
    """A session with one Vault, which logs in when necessary and raises this project's errors.

    Args:
        url: Vault's base URL.
        login: The auth method.
        namespace: The namespace of every call; the root namespace by default.
        trust: The trusted certificate authorities; the usual ones by default.
        connect_timeout: The connect timeout in seconds.
        read_timeout: The read timeout in seconds.
        block: The block that holds the credential, for messages; empty if it is not stored.
        sleep: Sleeps for a number of seconds between attempts.
    """

    def __init__(
        self,
        url: str,
        login: Login,
        *,
        namespace: str | None,
        trust: ssl.SSLContext | None,
        connect_timeout: float,
        read_timeout: float,
        block: str = "",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        parts = urlsplit(url)
        self.host = f"{parts.scheme}://{parts.netloc}"
        self._login = login
        self._block = block
        # Calls run in threads, and several destinations may share this session.
        self._logging_in = threading.Lock()
        self._sleep = sleep
        # An attempt may include a login before its call.
        self._deadline_seconds = 2 * (connect_timeout + read_timeout)
        session = requests.Session()
        transport = _Transport(connect_timeout, read_timeout, trust)
        session.mount("https://", transport)
        session.mount("http://", transport)
        # An empty token, because hvac would replace None by one from the environment.
        self._client = hvac.Client(
            url=url,
            token="",
            verify=True,
            allow_redirects=False,
            session=session,
            namespace=namespace,
            adapter=ExactAdapter,
        )

    def logged_in(self) -> hvac.Client:
        """Return the client, logged in.

        Raises:
            KeyRotationError: Vault cannot be reached, or refuses the login.
        """
        with concerning(self._block), self._logging_in:
            if not self._client.token:
                self._log_in()
        return self._client

    def close(self) -> None:
        """Close the connections."""
        self._client.session.close()

    async def call(
        self,
        doing: str,
        request: Request,
        *,
        repeatable: bool = True,
        attempts: int | None = None,
        examine: bool = True,
    ) -> dict[str, Any]:
        """Log in if necessary and make one call, with retries.

        Args:
            doing: The purpose of the call, as it reads after "while", such as `reading secret/app`.
            request: The call.
            repeatable: Whether the call may be repeated if it may have taken effect.
            attempts: The maximum number of attempts; 1 if the caller decides about each attempt.
            examine: Whether to check, after a 403, if the token has expired.

        Returns:
            Vault's response; empty if it has no body.

        Raises:
            ServiceError: The call failed; the subclass says how, `outcome_unknown` whether it may have taken effect.
        """

        async def attempt() -> dict[str, Any]:
            return await self._attempt(doing, request, examine)

        with concerning(self._block):
            return await with_retries(attempt, self._sleep, repeatable=repeatable, attempts=attempts)

    async def _attempt(self, doing: str, request: Request, examine: bool) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await in_own_thread(self._perform, doing, request, examine)
        except TimeoutError as error:
            raise self._unreachable(error, doing) from None

    def _perform(self, doing: str, request: Request, examine: bool) -> dict[str, Any]:
        # Visible only in the thread of this call.
        _deadline.set(time.monotonic() + self._deadline_seconds)
        token = self.logged_in().token
        try:
            return self._answer(doing, request)
        except ForbiddenError as error:
            # If another call has logged in meanwhile, this one may have used the expired token.
            if self._client.token == token:
                if not examine:
                    raise
                self._require_end_of_token(error, doing)
        with self._logging_in:
            if self._client.token == token:
                self._log_in()
        return self._answer(doing, request)

    def _require_end_of_token(self, refusal: ForbiddenError, doing: str) -> None:
        if self._token_is_valid():
            raise ForbiddenError(
                f"Vault at {self.host} accepts the token but does not permit {doing}.", status=refusal.status
            ) from None
        if self._login.where is None:
            raise UnauthorizedError(
                f"Vault at {self.host} does not accept the token: it is wrong, has expired or was revoked, or it lacks "
                "Vault's default policy and the permission for this."
            )

    def _token_is_valid(self) -> bool:
        # Vault answers 403 both to an expired token and to a missing permission.
        try:
            self._answer("looking the token up", lambda client: client.auth.token.lookup_self())
        except (ForbiddenError, UnauthorizedError):
            return False
        return True

    def _log_in(self) -> None:
        self._client.token = ""
        where = self._login.where
        try:
            self._answer(f"logging in at {where}", self._login.log_in)
        except (RejectedError, UnauthorizedError, ForbiddenError, NotFoundError) as error:
            raise UnauthorizedError(
                f"Vault at {self.host} refused the login at {where}: the role or its secret is wrong or has expired, "
                "or this auth method is not enabled there.",
                status=error.status,
            ) from None

    def _answer(self, doing: str, request: Request) -> dict[str, Any]:
        # `from None` throughout: a library's text may quote the request or the response.
        try:
            answer = request(self._client)
        except VaultError as error:
            raise self._refused(error, doing) from None
        except _AnswerTooLargeError:
            raise self._unexpected(f"sent more than {MAX_ANSWER_BYTES} bytes", doing) from None
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise self._unreachable(error, doing) from None
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise self._unexpected("sent an answer that is not as documented", doing) from None
        if isinstance(answer, dict):
            return answer
        if isinstance(answer, requests.Response) and answer.ok and not answer.content and not answer.is_redirect:
            return {}
        return self._not_json(answer, doing)

    def _not_json(self, answer: Any, doing: str) -> NoReturn:
        if isinstance(answer, requests.Response) and answer.is_redirect:
            raise self._unexpected("sent a redirect, which is not followed", doing, outcome_unknown=False)
        raise self._unexpected("sent something that is not a JSON object", doing)

    def _unexpected(self, what: str, doing: str, *, outcome_unknown: bool = True) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(f"Vault at {self.host} {what} while {doing}.", outcome_unknown=outcome_unknown)

    def _refused(self, error: VaultError, doing: str) -> ServiceError:
        response: requests.Response | None = getattr(error, "response", None)
        if response is None:
            return self._unexpected("was asked for something that hvac refuses", doing, outcome_unknown=False)
        status, text = response.status_code, " ".join(error.errors or [])
        if status == requests.codes.unavailable and "sealed" in text:
            return UnavailableError(
                f"Vault at {self.host} is sealed.", outcome_unknown=False, retryable=False, status=status
            )
        if status == requests.codes.not_found and not _is_from_vault(error.json):
            return self._unexpected("or a proxy in front of it answered 404, but not in Vault's format,", doing)
        if CAS_MISMATCH in text:
            return ConflictError(
                f"Vault at {self.host} refused {doing}: somebody else has written there since it was read.",
                status=status,
            )
        return error_for_status(status)(
            f"Vault at {self.host} answered {status} while {doing}.",
            retry_after=retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC)),
            status=status,
        )

    def _unreachable(self, error: BaseException, doing: str) -> UnreachableError:
        unknown, untrusted = True, is_certificate_error(error)
        if untrusted:
            why, unknown = "its certificate is not trusted", False
        elif not _was_connected(error):
            why, unknown = "no connection could be made", False
        elif isinstance(error, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError):
            why = "there was no answer in time"
        else:
            why = f"the exchange broke off ({type(error).__name__})"
        return UnreachableError(
            f"Vault at {self.host} could not be reached while {doing}: {why}.",
            outcome_unknown=unknown,
            retryable=not untrusted,
        )
