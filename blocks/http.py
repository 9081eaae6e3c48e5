"""How this project talks HTTP: explicit timeouts, a bounded answer, bounded retries, and errors that hold no secret.

One `JsonHttp` is one connection: one `httpx.AsyncClient`, opened once and shared by every call of a run.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import orjson
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
    error_for_status,
)
from blocks.redaction import keep_answers_out_of_logs

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 15.0
CALL_DEADLINE_SECONDS = 20.0
"""The longest that one attempt may take in all, however slowly its answer trickles in."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""The largest answer that is read; a page of 100 keys is below 100 kB."""
MAX_ATTEMPTS = 4
MAX_WAIT_SECONDS = 10.0
"""The longest wait between two attempts; a service that asks for more is reported instead of waited for."""
JITTER_SECONDS = 1.0
"""How much longer at most than a service asks is waited, so that not all callers come back at once."""

T = TypeVar("T")
Meaning = tuple[type[ServiceError], str]
"""What an error answer means: the error to raise, and our words for it, as they read before "while"."""

keep_answers_out_of_logs()


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a `Retry-After` header (RFC 9110, section 10.2.3).

    Args:
        value: The header's value: seconds, or an HTTP date.
        now: The current time, UTC.

    Returns:
        The seconds to wait, at least 0, or `None` where there is no header or it cannot be read.
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
    """Repeat a call a few times, with jitter, as long as its error is worth repeating and that is harmless.

    Args:
        call: What to do; it raises `ServiceError` where it fails.
        sleep: How to wait, in seconds; tests pass their own.
        repeatable: Whether the call may be made again when it may have taken effect; one that certainly did nothing
            is always made again.
        attempts: How often it is made at most; `MAX_ATTEMPTS` by default, 1 where whoever calls decides about each.

    Returns:
        What the call returned.

    Raises:
        ServiceError: The last error, where no attempt succeeded.
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
    """Say whether an error comes from a certificate that is not trusted.

    Args:
        error: The error, whose causes are followed.

    Returns:
        Whether a failed certificate check is among the causes.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@cache
def _tls() -> ssl.SSLContext:
    """Load the certificate authorities once per process; it takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _number(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value))
    raise TypeError


def _with_body(headers: Mapping[str, str], body: Mapping[str, Any] | None) -> dict[str, Any]:
    if body is None:
        return {"headers": dict(headers)}
    # Not httpx's own JSON: it would need a float, which is another number than most decimals.
    content = orjson.dumps(dict(body), default=_number)
    return {"headers": {**headers, "Content-Type": "application/json"}, "content": content}


class JsonHttp:
    """A connection to one service that speaks JSON.

    Args:
        service: The name by which messages call the service, such as `OpenRouter`.
        base_url: Where the service is; paths are added to it.
        transport: A transport for tests; real sockets without it.
        sleep: How to wait between attempts, in seconds.
        explain: Says what an error answer means, given its status and its JSON object, where the status alone does
            not tell; `None` leaves it to the status. An answer that is not a JSON object counts as an empty one. Its
            words must not quote the answer.
    """

    def __init__(
        self,
        service: str,
        base_url: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        explain: Callable[[int, Mapping[str, Any]], Meaning | None] | None = None,
    ) -> None:
        self.service = service
        self._sleep = sleep
        self._explain = explain
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            timeout=httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            follow_redirects=False,
            transport=transport,
            verify=_tls(),
            headers={"Accept": "application/json", "User-Agent": "key-rotation"},
        )

    @property
    def host(self) -> str:
        """Where the service is, for messages: scheme, host and port, never a path or a query."""
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
            path: The path below the base URL, each variable part already percent-encoded.
            doing: What the call is for, as it reads after "while", such as `creating a key`.
            headers: The headers that carry the credential.
            json_body: The body, if any; a `Decimal` in it is sent as the number that it is, to the last digit.
            params: The query, never with a secret in it.
            repeatable: Whether the call may be made again when it may have taken effect. A create may not.
            attempts: How often it is made at most; `MAX_ATTEMPTS` by default, 1 where whoever calls decides about each.

        Returns:
            The JSON object of a 2xx answer; an empty one for an empty answer. Numbers with a fraction are `Decimal`.

        Raises:
            ServiceError: The call failed; which subclass says how, and whether it may have taken effect.
            ConfigurationError: The address or the credential cannot be sent over HTTP; nothing was.
        """
        try:
            request = self._client.build_request(
                method, path.lstrip("/"), params=dict(params or {}), **_with_body(headers, json_body)
            )
        except (httpx.InvalidURL, ValueError, orjson.JSONEncodeError):
            raise ConfigurationError(
                f"The address or the credential of {self.service} holds characters that HTTP cannot carry."
            ) from None

        async def attempt() -> dict[str, Any]:
            return await self._attempt(request, doing)

        return await with_retries(attempt, self._sleep, repeatable=repeatable, attempts=attempts)

    async def _attempt(self, request: httpx.Request, doing: str) -> dict[str, Any]:
        status, retry_after, body = await self._exchange(request, doing)
        if 200 <= status < 300:  # noqa: PLR2004 - the hundreds are the meaning
            return self._parse(body, doing)
        kind, words = self._meaning(status, body)
        raise kind(f"{self.service} at {self.host} {words} while {doing}.", retry_after=retry_after, status=status)

    def _meaning(self, status: int, body: bytes) -> Meaning:
        plain = error_for_status(status), f"answered {status}"
        if self._explain is None:
            return plain
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
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
            answer = json.loads(body, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError):
            raise UnexpectedAnswerError(
                f"{self.service} at {self.host} sent something that is not JSON while {doing}."
            ) from None
        if not isinstance(answer, dict):
            raise UnexpectedAnswerError(f"{self.service} at {self.host} sent JSON that is not an object while {doing}.")
        return answer
