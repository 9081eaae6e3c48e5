"""The HTTP client: explicit timeouts, bounded responses, bounded retries, and errors without secrets.

A `JsonHttp` owns one `httpx.AsyncClient`, which all calls of a run share.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from random import uniform
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random,
    wait_random_exponential,
)

from blocks.errors import (
    ConfigurationError,
    ServiceError,
    UnexpectedAnswerError,
    UnreachableError,
    concerning,
    error_for_status,
)
from blocks.exact import decoded, encoded
from blocks.redaction import keep_answers_out_of_logs
from blocks.urls import may_use_proxy

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 15.0
CALL_DEADLINE_SECONDS = 20.0
"""The total timeout of one attempt, however slowly the response trickles in."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""The largest accepted response; a page of 100 keys is below 100 kB."""
MAX_ATTEMPTS = 4
MAX_WAIT_SECONDS = 10.0
"""The longest wait between two attempts; if a service asks for more, the call fails instead."""
JITTER_SECONDS = 1.0
"""The maximum jitter added to a requested wait, so that callers do not return all at once."""

UNSTATED_WAIT_SECONDS = 1.0
"""The wait after a 429 that asks for none."""

T = TypeVar("T")
Meaning = tuple[type[ServiceError], str]
"""The meaning of an error response: the error to raise, and the words before "while" in its message."""

_limited: dict[str, tuple[float, object]] = {}
"""By URL: until when a service has asked this process to wait (monotonic seconds), and who of it was asked."""

keep_answers_out_of_logs()


def seconds_to_wait() -> float:
    """Return how long any service has asked this process to wait, by a 429 to any run; at most `MAX_WAIT_SECONDS`.

    Returns:
        The seconds from now; 0 if none has, or if they are over. Can be called from any thread.
    """
    now = time.monotonic()
    return max([0.0, *(until - now for until, _ in [*_limited.values()])])


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Parse a `Retry-After` header (RFC 9110, section 10.2.3): seconds, or an HTTP date.

    Args:
        value: The header's value.
        now: The current time, UTC.

    Returns:
        The seconds to wait, at least 0; `None` if the header is missing or invalid.
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]+", value.strip()):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    if asked is not None:
        return float(asked) + wait_random(0, JITTER_SECONDS)(state)
    return wait_random_exponential(multiplier=0.25, max=MAX_WAIT_SECONDS)(state)


async def with_retries(
    call: Callable[[], Awaitable[T]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    *,
    repeatable: bool = True,
    attempts: int | None = None,
) -> T:
    """Retry a call up to `MAX_ATTEMPTS` times, with jitter, if its error is retryable and a repetition is harmless.

    Args:
        call: The call; it raises `ServiceError` if it fails.
        sleep: Sleeps for a number of seconds; tests pass their own.
        repeatable: Whether the call may be repeated if it may have taken effect. A call that certainly had no effect
            is always repeatable.
        attempts: The maximum number of attempts; `MAX_ATTEMPTS` by default, 1 if the caller decides about each attempt.

    Returns:
        What the call returned.

    Raises:
        ServiceError: The last error, if no attempt succeeded.
    """

    def may_retry(error: BaseException) -> bool:
        if not isinstance(error, ServiceError) or not error.retryable:
            return False
        return (repeatable or not error.outcome_unknown) and (error.retry_after or 0.0) <= MAX_WAIT_SECONDS

    retrying = AsyncRetrying(
        stop=stop_after_attempt(attempts or MAX_ATTEMPTS),
        wait=_wait,
        retry=retry_if_exception(may_retry),
        sleep=sleep,
        reraise=True,
    )
    return await retrying(call)


def is_certificate_error(error: BaseException | None) -> bool:
    """Return whether an untrusted certificate is among an error's causes."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@cache
def _tls() -> ssl.SSLContext:
    """Load the certificate authorities once per process, because it takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _with_body(headers: Mapping[str, str], body: Mapping[str, Any] | None) -> dict[str, Any]:
    if body is None:
        return {"headers": dict(headers)}
    return {"headers": {**headers, "Content-Type": "application/json"}, "content": encoded(dict(body))}


class JsonHttp:
    """A connection to one service that speaks JSON.

    Args:
        service: The service's name in messages, such as `OpenRouter`.
        base_url: The service's base URL, to which paths are appended.
        block: The block that holds the credential, for messages; empty if it is not stored.
        transport: A transport for tests; real sockets by default.
        sleep: Sleeps for a number of seconds between attempts.
        explain: Returns the meaning of an error response, given its status and its JSON object (empty if it has none);
            `None` if the status is enough. The words must not quote the response.
    """

    def __init__(
        self,
        service: str,
        base_url: str,
        *,
        block: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        explain: Callable[[int, Mapping[str, Any]], Meaning | None] | None = None,
    ) -> None:
        self.service = service
        self._block = block
        self._sleep = sleep
        self._explain = explain
        # An object of its own, not `id(self)`: Python gives the id of a closed connection to a later one.
        self._caller = object()
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            timeout=httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            follow_redirects=False,
            transport=transport,
            verify=_tls(),
            trust_env=may_use_proxy(base_url),
            headers={"Accept": "application/json", "User-Agent": "key-rotation"},
        )

    @property
    def host(self) -> str:
        """Scheme, host and port of the service, for messages; never a path or a query."""
        url = self._client.base_url
        return f"{url.scheme}://{url.netloc.decode()}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        headers: Mapping[str, str],
        json_body: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        repeatable: bool = True,
        attempts: int | None = None,
    ) -> dict[str, Any]:
        """Make one call and return its JSON object.

        Args:
            method: The HTTP method.
            path: The path below the base URL, with variable parts percent-encoded.
            doing: The purpose of the call, as it reads after "while", such as `creating a key`.
            headers: The headers that carry the credential.
            json_body: The body, if any; a `Decimal` in it is sent exactly, to the last digit.
            params: The query, never with a secret in it.
            repeatable: Whether the call may be repeated if it may have taken effect. A create may not.
            attempts: The maximum number of attempts; `MAX_ATTEMPTS` by default, 1 if the caller decides about each.

        Returns:
            The JSON object of a 2xx response; empty for an empty response. Its numbers are exact (`blocks.exact`).

        Raises:
            ServiceError: The call failed; the subclass says how, `outcome_unknown` whether it may have taken effect.
            ConfigurationError: The URL or the credential cannot be sent over HTTP; nothing was sent.
        """
        try:
            request = self._client.build_request(
                method, path.lstrip("/"), params=dict(params or {}), **_with_body(headers, json_body)
            )
        except (httpx.InvalidURL, ValueError):
            raise ConfigurationError(
                f"The address or the credential of {self.service} holds characters that HTTP cannot carry."
            ) from None

        async def attempt() -> dict[str, Any]:
            return await self._attempt(request, doing)

        with concerning(self._block):
            return await with_retries(attempt, self._sleep, repeatable=repeatable, attempts=attempts)

    async def _attempt(self, request: httpx.Request, doing: str) -> dict[str, Any]:
        await self._wait_for_others(request)
        status, retry_after, body = await self._exchange(request, doing)
        if 200 <= status < 300:  # noqa: PLR2004 - the hundreds are the meaning
            return self._parse(body, doing)
        kind, words = self._meaning(status, body)
        if status == httpx.codes.TOO_MANY_REQUESTS:
            wait = min(UNSTATED_WAIT_SECONDS if retry_after is None else retry_after, MAX_WAIT_SECONDS)
            # A later and shorter answer, such as one to a write, takes nothing back.
            asked = time.monotonic() + wait, self._caller
            _limited[self.host] = max(asked, _limited.get(self.host, asked), key=lambda each: each[0])
        raise kind(f"{self.service} at {self.host} {words} while {doing}.", retry_after=retry_after, status=status)

    async def _wait_for_others(self, request: httpx.Request) -> None:
        """Wait for as long as the service has asked another run of this process to.

        A write is not delayed: it follows right after the check that this run may make it.
        """
        until, asked = _limited.get(self.host, (0.0, self._caller))
        wait = until - time.monotonic()
        if request.method == "GET" and asked is not self._caller and wait > 0:
            await self._sleep(wait + uniform(0, JITTER_SECONDS))  # noqa: S311 - no secret depends on it

    def _meaning(self, status: int, body: bytes) -> Meaning:
        plain = error_for_status(status), f"answered {status}"
        if self._explain is None:
            return plain
        try:
            answer = decoded(body)
        except ValueError:
            answer = None
        return self._explain(status, answer if isinstance(answer, dict) else {}) or plain

    async def _exchange(self, request: httpx.Request, doing: str) -> tuple[int, float | None, bytes]:
        # `from None` throughout: a library's text may quote the request.
        try:
            async with asyncio.timeout(CALL_DEADLINE_SECONDS):
                answer = await self._client.send(request, stream=True)
                try:
                    wait = retry_after_seconds(answer.headers.get("Retry-After"), datetime.now(UTC))
                    return answer.status_code, wait, await self._read(answer, doing)
                finally:
                    await answer.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            untrusted = is_certificate_error(error)
            why = "its certificate is not trusted" if untrusted else "no connection could be made"
            raise self._unreachable(why, doing, outcome_unknown=False, retryable=not untrusted) from None
        except (httpx.TimeoutException, TimeoutError):
            raise self._unreachable("there was no answer in time", doing, outcome_unknown=True) from None
        except httpx.HTTPError as error:
            raise self._unreachable(
                f"the exchange broke off ({type(error).__name__})", doing, outcome_unknown=True
            ) from None

    def _unreachable(self, why: str, doing: str, *, outcome_unknown: bool, retryable: bool = True) -> UnreachableError:
        return UnreachableError(
            f"{self.service} at {self.host} could not be reached while {doing}: {why}.",
            outcome_unknown=outcome_unknown,
            retryable=retryable,
        )

    async def _read(self, answer: httpx.Response, doing: str) -> bytes:
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise UnexpectedAnswerError(
                    f"{self.service} at {self.host} sent more than {MAX_ANSWER_BYTES} bytes while {doing}."
                )
        return bytes(body)

    def _parse(self, body: bytes, doing: str) -> dict[str, Any]:
        if not body.strip():
            return {}
        try:
            answer = decoded(body)
        except ValueError:
            raise UnexpectedAnswerError(
                f"{self.service} at {self.host} sent something that is not JSON while {doing}."
            ) from None
        if not isinstance(answer, dict):
            raise UnexpectedAnswerError(f"{self.service} at {self.host} sent JSON that is not an object while {doing}.")
        return answer
