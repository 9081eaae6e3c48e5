"""The HTTP connection below every service's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from blocks import http
from blocks.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    KeyRotationError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    concerning,
)
from blocks.http import (
    JITTER_SECONDS,
    MAX_ATTEMPTS,
    MAX_WAIT_SECONDS,
    JsonHttp,
    retry_after_seconds,
)
from sandbox.server import Fault, make_app, running
from sandbox.stack import free_port
from tests.certificates import self_signed

SECRET = "the-management-key"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
Answer = tuple[int, dict[str, str], bytes]
OK: Answer = (200, {}, b'{"works": true}')


class Service:
    """Answers requests one after the other, repeats the last answer, and records requests and waits."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer
        return httpx.Response(status, headers=headers, content=body)

    async def sleep(self, seconds: float) -> None:
        """Record a wait instead of waiting."""
        self.waits.append(seconds)

    async def ask(self, *, repeatable: bool = True, headers: Mapping[str, str] = HEADERS) -> dict[str, Any]:
        """Make one call."""
        transport = httpx.MockTransport(self.answer)
        async with JsonHttp("Service", "https://api.example/v1", transport=transport, sleep=self.sleep) as connection:
            return await connection.request(
                "POST", "keys", doing="asking", headers=headers, json_body={}, repeatable=repeatable
            )

    async def fail(self, *, repeatable: bool = True) -> ServiceError:
        """Make one call that fails."""
        with pytest.raises(ServiceError) as failed:
            await self.ask(repeatable=repeatable)
        return failed.value


class Stream(httpx.AsyncByteStream):
    """A body that sends one blank after another, without an end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0)


TABLE: dict[str, tuple[Answer, type[ServiceError], bool, int]] = {
    "bad request": ((400, {}, b"{}"), RejectedError, False, 1),
    "unauthorized": ((401, {}, b"{}"), UnauthorizedError, False, 1),
    "forbidden": ((403, {}, b"{}"), ForbiddenError, False, 1),
    "not found": ((404, {}, b"{}"), NotFoundError, False, 1),
    "conflict": ((409, {}, b"{}"), ConflictError, False, 1),
    "not processable": ((422, {}, b"{}"), RejectedError, False, 1),
    "too many requests": ((429, {}, b"{}"), RateLimitedError, False, MAX_ATTEMPTS),
    "not ready": ((412, {}, b"{}"), RateLimitedError, False, MAX_ATTEMPTS),
    "too early": ((425, {}, b"{}"), RateLimitedError, False, MAX_ATTEMPTS),
    "timed out at the service": ((408, {}, b"{}"), UnavailableError, True, MAX_ATTEMPTS),
    "given up by a proxy": ((499, {}, b"{}"), UnavailableError, True, MAX_ATTEMPTS),
    "a status that nobody knows": ((460, {}, b"{}"), UnavailableError, True, MAX_ATTEMPTS),
    "internal error": ((500, {}, b"<html>"), UnavailableError, True, MAX_ATTEMPTS),
    "bad gateway": ((502, {}, b""), UnavailableError, True, MAX_ATTEMPTS),
    "unavailable": ((503, {}, b""), UnavailableError, True, MAX_ATTEMPTS),
    "gateway timeout": ((504, {}, b""), UnavailableError, True, MAX_ATTEMPTS),
    "redirect": ((302, {"Location": "https://elsewhere.example/"}, b""), UnexpectedAnswerError, True, 1),
    "HTML": ((200, {"Content-Type": "text/html"}, b"<html>hello</html>"), UnexpectedAnswerError, True, 1),
    "truncated JSON": ((200, {}, b'{"key": "sk-or'), UnexpectedAnswerError, True, 1),
    "JSON that is a list": ((200, {}, b"[]"), UnexpectedAnswerError, True, 1),
    "not UTF-8": ((200, {}, b'{"a": "\xff"}'), UnexpectedAnswerError, True, 1),
    "a number out of range": ((200, {}, b'{"a": 1e99999999999999999999}'), UnexpectedAnswerError, True, 1),
    "endless nesting": ((200, {}, b'{"a":' + b"[" * 100_000), UnexpectedAnswerError, True, 1),
}


@pytest.mark.parametrize(("answer", "error", "outcome_unknown", "attempts"), TABLE.values(), ids=TABLE)
class TestAnswers:
    async def test_each_answer_has_its_error(
        self, answer: Answer, error: type[ServiceError], outcome_unknown: bool, attempts: int
    ) -> None:
        """The answer determines the error class and whether the outcome is unknown; temporary failures are retried."""
        service = Service(answer)

        failed = await service.fail()

        assert (type(failed), failed.outcome_unknown) == (error, outcome_unknown)
        assert (len(service.requests), len(service.waits)) == (attempts, attempts - 1)
        assert all(0 <= wait <= MAX_WAIT_SECONDS for wait in service.waits)

    async def test_a_create_is_made_again_only_where_it_did_nothing(
        self, answer: Answer, error: type[ServiceError], outcome_unknown: bool, attempts: int
    ) -> None:
        """A create is not repeated if the answer leaves open whether it took effect."""
        service = Service(answer)

        await service.fail(repeatable=False)

        assert len(service.requests) == (1 if outcome_unknown else attempts)

    async def test_an_error_quotes_neither_body_nor_credential(
        self, answer: Answer, error: type[ServiceError], outcome_unknown: bool, attempts: int
    ) -> None:
        """The text names service, host and action, and the error has no cause that could reveal more."""
        failed = await Service(answer).fail()

        assert "Service at https://api.example" in str(failed)
        assert "while asking" in str(failed)
        assert not [word for word in (SECRET, "hello", "sk-or", "elsewhere") if word in repr(failed)]
        assert failed.__cause__ is None
        assert failed.__suppress_context__ or failed.__context__ is None


async def test_a_redirect_is_not_followed() -> None:
    """Only the configured address gets the credential."""
    service = Service((307, {"Location": "https://elsewhere.example/"}, b""))

    await service.fail()

    assert [request.url.host for request in service.requests] == ["api.example"]


async def test_a_call_that_heals_returns_its_answer() -> None:
    """The caller does not notice a failure that has passed."""
    service = Service((503, {}, b""), (429, {}, b""), OK)

    assert await service.ask() == {"works": True}
    assert len(service.waits) == 2


@pytest.mark.parametrize("body", [b"", b" \n"])
async def test_an_empty_answer_is_an_empty_object(body: bytes) -> None:
    """A 2xx without a body is a success."""
    assert await Service((204, {}, body)).ask() == {}


class TestRetryAfter:
    async def test_seconds_are_waited_for(self) -> None:
        """The service's number is the minimum, with jitter, so that callers do not return all at once."""
        waits = []
        for _ in range(20):
            service = Service((429, {"Retry-After": "2"}, b""), OK)
            await service.ask()
            waits += service.waits

        assert 2 <= min(waits) < max(waits) <= 2 + JITTER_SECONDS

    async def test_a_date_is_waited_for(self) -> None:
        """An HTTP date is converted into the seconds until then."""
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=8), usegmt=True)
        service = Service((503, {"Retry-After": soon}, b""), OK)

        await service.ask()

        assert len(service.waits) == 1
        assert 0 < service.waits[0] <= 8 + JITTER_SECONDS

    async def test_a_wait_too_long_is_reported_instead(self) -> None:
        """A wait of a minute is too long for a call, and the error contains it."""
        service = Service((429, {"Retry-After": "60"}, b""), OK)

        failed = await service.fail()

        assert (len(service.requests), service.waits) == (1, [])
        assert failed.retry_after == 60

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            ("0", 0.0),
            (" 7 ", 7.0),
            ("Mon, 23 Nov 2026 12:00:09 GMT", 9.0),
            ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
            ("-1", None),
            ("1.5", None),
            ("²", None),
            ("soon", None),
            ("", None),
        ],
    )
    def test_what_cannot_be_read_is_no_wait(self, value: str | None, seconds: float | None) -> None:
        """Seconds and dates are parsed, a past date means now, and anything else counts as no header."""
        assert retry_after_seconds(value, datetime(2026, 11, 23, 12, tzinfo=UTC)) == seconds


class TestBounds:
    async def test_an_answer_above_the_limit_is_not_read_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endless answer must not fill the memory."""
        monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 10)

        failed = await Service((200, {}, b'{"a": "0123456789"}')).fail()

        assert isinstance(failed, UnexpectedAnswerError)
        assert "more than 10 bytes" in str(failed)

    async def test_an_answer_that_trickles_is_given_up_at_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bytes that keep arriving do not extend a call beyond its deadline."""
        monkeypatch.setattr(http, "CALL_DEADLINE_SECONDS", 0.02)
        transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Stream()))

        async with JsonHttp("Service", "https://api.example", transport=transport) as connection:
            with pytest.raises(UnreachableError, match="no answer in time") as failed:
                await connection.request("POST", "keys", doing="asking", headers=HEADERS, repeatable=False)

        assert failed.value.outcome_unknown


def leaves(kind: type[Exception]) -> list[type[Exception]]:
    """Return the leaf classes below an exception class."""
    below = [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)]
    return below or [kind]


class TestConnection:
    @pytest.mark.parametrize("error", leaves(httpx.RequestError), ids=lambda error: error.__name__)
    async def test_every_error_of_the_library_is_translated(self, error: type[Exception]) -> None:
        """Every error of httpx for a request becomes an unreachable service, without the text of httpx."""
        failed = await Service(error(f"about {SECRET}")).fail(repeatable=False)

        assert isinstance(failed, UnreachableError)
        assert SECRET not in repr(failed)
        assert failed.outcome_unknown == (error not in {httpx.ConnectError, httpx.ConnectTimeout})

    async def test_a_dropped_connection_leaves_the_outcome_open(self) -> None:
        """A server that closes the connection after a request may have executed it."""
        app = echo()
        app.state.faults.add(Fault("after", times=1))
        with running(app) as url:
            async with JsonHttp("Service", url) as connection:
                with pytest.raises(UnreachableError, match="broke off") as failed:
                    await connection.request("POST", "echo", doing="asking", headers=HEADERS, repeatable=False)

        assert failed.value.outcome_unknown
        assert len(app.state.requests) == 1

    async def test_a_dropped_connection_is_tried_again_where_that_is_harmless(self) -> None:
        """The second attempt opens a new connection and succeeds."""
        app, service = echo(), Service(OK)
        app.state.faults.add(Fault("after", times=1))
        with running(app) as url:
            async with JsonHttp("Service", url, sleep=service.sleep) as connection:
                answer = await connection.request("POST", "echo", doing="asking", headers=HEADERS)

        assert answer == {"works": True}
        assert (len(app.state.requests), len(service.waits)) == (2, 1)

    async def test_a_refused_connection_did_nothing(self) -> None:
        """Without a listener nothing can have taken effect, so even a create is repeated a few times."""
        service = Service(OK)
        async with JsonHttp("Service", f"http://127.0.0.1:{free_port()}", sleep=service.sleep) as connection:
            with pytest.raises(UnreachableError, match="no connection could be made") as failed:
                await connection.request("POST", "echo", doing="asking", headers=HEADERS, repeatable=False)

        assert not failed.value.outcome_unknown
        assert len(service.waits) == MAX_ATTEMPTS - 1

    async def test_an_untrusted_certificate_gets_no_credential(self, tmp_path: Path) -> None:
        """The untrusted certificate is given as the reason, and no request is sent."""
        app = echo()
        certfile, keyfile = self_signed(tmp_path)
        with running(app, certfile=certfile, keyfile=keyfile) as url:
            async with JsonHttp("Service", url) as connection:
                with pytest.raises(UnreachableError, match="certificate is not trusted") as failed:
                    await connection.request("POST", "echo", doing="asking", headers=HEADERS, repeatable=False)

        assert not failed.value.outcome_unknown
        assert app.state.requests == []

    async def test_a_credential_that_http_cannot_carry_is_not_sent(self) -> None:
        """A key with an invalid character is a configuration error, which does not quote the key."""
        service = Service(OK)

        with pytest.raises(ConfigurationError) as failed:
            await service.ask(headers={"Authorization": f"Bearer {SECRET}…"})

        assert service.requests == []
        assert SECRET not in repr(failed.value)
        assert failed.value.__suppress_context__


def echo() -> Starlette:
    """Return a service that answers every request."""

    async def works(_request: Request) -> JSONResponse:
        return JSONResponse({"works": True})

    return make_app([Route("/echo", works, methods=["POST"])])


class TestExplained:
    @staticmethod
    async def fail(answer: Answer) -> KeyRotationError:
        """Call a service whose 404 about a folder has its own meaning, and return the error."""

        def explain(status: int, body: Mapping[str, Any]) -> http.Meaning | None:
            return (ConflictError, "has no folder") if (status, body.get("about")) == (404, "folder") else None

        transport = httpx.MockTransport(Service(answer).answer)
        async with JsonHttp("Service", "https://api.example", transport=transport, explain=explain) as connection:
            with pytest.raises(ServiceError) as failed:
                await connection.request("GET", "keys", doing="asking", headers=HEADERS)
        return failed.value

    async def test_an_explained_answer_has_its_own_error_and_words(self) -> None:
        """If the status alone is ambiguous, the client's own interpretation decides."""
        failed = await self.fail((404, {}, b'{"about": "folder"}'))

        assert isinstance(failed, ConflictError)
        assert str(failed) == "Service at https://api.example has no folder while asking."

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"about": "else"}', b"[" * 100_000])
    async def test_what_is_not_explained_is_left_to_the_status(self, body: bytes) -> None:
        """Without a known JSON object in the body, the status decides."""
        failed = await self.fail((404, {}, body))

        assert isinstance(failed, NotFoundError)
        assert "answered 404" in str(failed)


def test_messages_name_scheme_and_host_only() -> None:
    """The path and the query of a base URL stay out of messages."""
    assert JsonHttp("Service", "https://api.example:8443/v1/team").host == "https://api.example:8443"


async def test_an_error_names_the_block_that_holds_the_credential() -> None:
    """Several blocks may use one address, and only the named one has to be checked."""
    transport = httpx.MockTransport(lambda _: httpx.Response(503))
    async with JsonHttp("Service", "https://api.example", block="service/checkout", transport=transport) as connection:
        with pytest.raises(UnavailableError) as caught:
            await connection.request("GET", "/", doing="asking", headers={}, attempts=1)

    assert str(caught.value) == ("Service at https://api.example answered 503 while asking (block service/checkout).")


def test_the_block_nearest_to_the_failure_is_named_once() -> None:
    """The destination's block contains the one with the credential, and that is the one to correct."""
    with pytest.raises(ServiceError) as caught, concerning("vault-secret/outer"), concerning("vault-credentials/inner"):
        raise ServiceError("It failed.")

    assert str(caught.value) == "It failed (block vault-credentials/inner)."
    with pytest.raises(ServiceError) as caught, concerning("secret/checkout"):
        raise ServiceError("secret/checkout could not be read.")
    assert str(caught.value) == "secret/checkout could not be read."
