"""The server that all stand-ins share: real sockets, fault injection, a log of the requests."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from sandbox.server import Fault, FaultMiddleware, Faults, make_app, running
from tests.certificates import self_signed


class Counter:
    """A stand-in with one endpoint, which counts the requests that have taken effect."""

    def __init__(self) -> None:
        self.effects = 0
        self.app: Starlette = make_app([Route("/count", self.count, methods=["GET", "POST"])])

    async def count(self, request: Request) -> Response:
        """Take effect, after reading the body as a real endpoint does."""
        await request.body()
        self.effects += 1
        return JSONResponse({"effects": self.effects})


@pytest.fixture
def counter() -> Counter:
    """A new stand-in for each test."""
    return Counter()


@pytest.fixture
def client(counter: Counter) -> Iterator[httpx.Client]:
    """A client of the running stand-in."""
    with running(counter.app) as url, httpx.Client(base_url=url) as client:
        yield client


class TestRunning:
    def test_stops_listening_at_the_end(self) -> None:
        """After the context, nothing listens at the address any more."""
        with running(Counter().app) as url:
            assert httpx.get(f"{url}/count").status_code == 200

        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/count")

    def test_a_port_can_be_taken_again(self) -> None:
        """A stand-in can be restarted on the port that it used before."""
        with running(Counter().app) as first:
            port = httpx.URL(first).port

        with running(Counter().app, port or 0) as second:
            assert (second, httpx.get(f"{second}/count").status_code) == (first, 200)

    def test_speaks_tls(self, tmp_path: Path) -> None:
        """With a certificate, it serves HTTPS."""
        certfile, keyfile = self_signed(tmp_path)

        with running(Counter().app, certfile=certfile, keyfile=keyfile) as url:
            answer = httpx.get(f"{url}/count", verify=ssl.create_default_context(cafile=certfile))

        assert (url[:8], answer.status_code) == ("https://", 200)


class TestFaults:
    @pytest.mark.parametrize(("when", "effects"), [("before", 0), ("after", 1)])
    def test_an_answer_is_replaced(self, counter: Counter, client: httpx.Client, when: str, effects: int) -> None:
        """A fault sends its own status, headers and body, before or after the request takes effect."""
        counter.app.state.faults.add(Fault(when, status=429, headers={"Retry-After": "7"}, body="slow"))  # type: ignore[arg-type]

        answer = client.post("/count", content=b"body")

        assert (answer.status_code, answer.headers["Retry-After"], answer.text) == (429, "7", "slow")
        assert counter.effects == effects

    @pytest.mark.parametrize(("when", "effects"), [("before", 0), ("after", 1)])
    def test_a_connection_is_dropped(self, counter: Counter, client: httpx.Client, when: str, effects: int) -> None:
        """A fault without a status drops the connection, before or after the request takes effect."""
        counter.app.state.faults.add(Fault(when))  # type: ignore[arg-type]

        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/count", content=b"body")

        assert counter.effects == effects

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_delayed_request_takes_effect_once(self, counter: Counter, client: httpx.Client, when: str) -> None:
        """A fault that only delays lets the request take effect exactly once, and delays the response."""
        counter.app.state.faults.add(Fault(when, status=0, delay=0.1))  # type: ignore[arg-type]
        begun = time.perf_counter()

        answer = client.post("/count", content=b"body")

        assert answer.json() == {"effects": 1}
        assert time.perf_counter() - begun >= 0.1

    @pytest.mark.parametrize(("when", "effects"), [("before", 0), ("after", 1)])
    def test_a_held_request_is_let_go(self, counter: Counter, client: httpx.Client, when: str, effects: int) -> None:
        """A test can detect that a request is held, before or after its effect, and release it at any time."""
        fault = counter.app.state.faults.add(Fault(when, status=0, delay=3600))  # type: ignore[arg-type]
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(client.post, "/count", content=b"body")
            while not fault.struck:
                time.sleep(0.01)
            meanwhile = counter.effects

            fault.delay = 0

            assert answer.result().json() == {"effects": 1}
        assert meanwhile == effects

    def test_a_slow_answer_comes_after_the_effect(self, counter: Counter, client: httpx.Client) -> None:
        """A request can take effect although its client has timed out."""
        counter.app.state.faults.add(Fault("after", status=0, delay=5))

        with pytest.raises(httpx.ReadTimeout):
            client.post("/count", content=b"body", timeout=0.5)

        assert counter.effects == 1

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("status", [None, 503])
    async def test_reads_the_request_to_its_end(self, when: str, status: int | None) -> None:
        """The body is read even if it is not used; otherwise the client might see a reset instead of a drop."""
        parts: list[Message] = [
            {"type": "http.request", "body": b"bo", "more_body": True},
            {"type": "http.request", "body": b"dy", "more_body": False},
        ]
        faults, sent = Faults(), list[Message]()
        faults.add(Fault(when, status=status))  # type: ignore[arg-type]

        async def receive() -> Message:
            return parts.pop(0)

        async def send(message: Message) -> None:
            assert not parts
            sent.append(message)

        unread = FaultMiddleware(Response("refused", 401), faults, [])
        await unread({"type": "http", "method": "POST", "path": "/"}, receive, send)

        assert [message["status"] for message in sent if "status" in message] == [status or 200]

    def test_strikes_only_what_matches(self, counter: Counter, client: httpx.Client) -> None:
        """Method and path select the affected requests."""
        counter.app.state.faults.add(Fault(method="POST", status=500))
        counter.app.state.faults.add(Fault(path="^/other$", status=500))

        assert [client.get("/count").status_code, client.post("/count").status_code] == [200, 500]

    def test_strikes_as_often_as_it_should(self, counter: Counter, client: httpx.Client) -> None:
        """A fault with `times` affects that many requests."""
        counter.app.state.faults.add(Fault(status=503, times=2))

        assert [client.get("/count").status_code for _ in range(3)] == [503, 503, 200]

    def test_chance_is_repeatable(self) -> None:
        """The same seed affects the same requests, at about the rate of `probability`."""
        runs = []
        for _ in range(2):
            faults = Faults(seed=7)
            faults.add(Fault(probability=0.5))
            runs.append([faults.choose("GET", "/count") is not None for _ in range(200)])

        assert runs[0] == runs[1]
        assert 70 < sum(runs[0]) < 130

    @pytest.mark.parametrize("wrong", [{"when": "during"}, {"path": "("}, {"stauts": 500}])
    def test_a_fault_that_cannot_be_is_refused(self, client: httpx.Client, wrong: dict[str, object]) -> None:
        """A misspelled fault is refused when it is added, and affects no request."""
        refused = client.post("/_sandbox/faults", json=wrong)

        assert (refused.status_code, client.get("/count").status_code) == (400, 200)

    def test_is_switched_over_http(self, counter: Counter, client: httpx.Client) -> None:
        """A fault can be added, and all faults removed, over HTTP."""
        client.post("/_sandbox/faults", json={"method": "GET", "path": "/count", "status": 503})
        struck = client.get("/count").status_code

        client.delete("/_sandbox/faults")

        assert (struck, client.get("/count").status_code, counter.app.state.faults.rules) == (503, 200, [])


class TestLog:
    def test_holds_methods_and_paths_only(self, counter: Counter, client: httpx.Client) -> None:
        """The log has each request's method and path, but no query, header or body, and no control request."""
        client.post("/count?token=hidden", content=b"hidden", headers={"Authorization": "Bearer hidden"})

        seen = client.get("/_sandbox/requests")

        assert seen.json() == {"requests": [["POST", "/count"]]}
        assert counter.app.state.requests == [("POST", "/count")]

    def test_logs_what_a_fault_has_struck(self, counter: Counter, client: httpx.Client) -> None:
        """A failed request is logged like any other."""
        counter.app.state.faults.add(Fault(status=500))

        client.get("/count")

        assert counter.app.state.requests == [("GET", "/count")]

    def test_is_reset(self, counter: Counter, client: httpx.Client) -> None:
        """The log can be cleared over HTTP, so that a test counts only its own requests."""
        client.get("/count")

        client.delete("/_sandbox/requests")

        assert counter.app.state.requests == []
