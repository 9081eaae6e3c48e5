"""HTTP servers for the stand-ins, with fault injection and a log of the requests."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

START_TIMEOUT_SECONDS = 120.0
PAUSE_SECONDS = 0.02
"""The polling interval of a delayed request."""
TICK_SECONDS = 1.0
"""The interval between updates of the Date header."""


@dataclass
class Fault:
    """A fault that is injected into matching requests.

    Args:
        when: `before` or `after` the request takes effect.
        method: The HTTP method; any by default.
        path: A regular expression to search for in the path.
        status: The status of the error response; without it, the connection is dropped.
        headers: Headers of the error response.
        body: Body of the error response.
        delay: Seconds to wait first. With `status` 0, the real response follows the delay. Reducing the delay releases
            a waiting request.
        skip: How many matching requests to let through first.
        times: How many requests are affected; all by default.
        probability: The probability that a request is affected.

    Raises:
        ValueError: `when` or `path` is invalid.
    """

    when: Literal["before", "after"] = "before"
    method: str | None = None
    path: str = ""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    delay: float = 0.0
    skip: int = 0
    times: int | None = None
    probability: float = 1.0
    struck: int = field(default=0, init=False)
    """The number of affected requests; with `after`, each counts once it has taken effect."""

    def __post_init__(self) -> None:
        if self.when not in ("before", "after"):
            raise ValueError("when must be before or after")
        try:
            re.compile(self.path)
        except re.error:
            raise ValueError("path must be a regular expression") from None

    def strikes(self, method: str, path: str, random: Random) -> bool:
        """Return whether the fault affects a request, and update its counters."""
        if self.times == 0 or (self.method and self.method != method) or not re.search(self.path, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if random.random() >= self.probability:
            return False
        if self.times is not None:
            self.times -= 1
        return True

    async def hold(self) -> None:
        """Delay an affected request."""
        self.struck += 1
        begun = time.monotonic()
        while (left := begun + self.delay - time.monotonic()) > 0:  # noqa: ASYNC110 - another thread may change the delay
            await asyncio.sleep(min(left, PAUSE_SECONDS))


class Faults:
    """The active faults.

    Args:
        seed: The seed of the random number generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)
        self.rules: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Activate a fault, and return it."""
        self.rules.append(fault)
        return fault

    def clear(self) -> None:
        """Deactivate all faults."""
        self.rules.clear()

    def choose(self, method: str, path: str) -> Fault | None:
        """Return the first fault that affects a request."""
        return next((fault for fault in list(self.rules) if fault.strikes(method, path, self._random)), None)


class FaultMiddleware:
    """Logs each request's method and path, and injects the faults."""

    def __init__(self, app: ASGIApp, faults: Faults, log: list[tuple[str, str]]) -> None:
        self._app = app
        self._faults = faults
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or inject a fault."""
        if scope["type"] != "http" or scope["path"].startswith("/_sandbox/"):
            await self._app(scope, receive, send)
            return
        self._log.append((scope["method"], scope["path"]))
        fault = self._faults.choose(scope["method"], scope["path"])
        if fault is None:
            await self._app(scope, receive, send)
        elif fault.when == "before":
            await self._strike(fault, self._app, scope, _Body(receive), send)
        else:
            # The request takes effect exactly once, here; the fault affects only its response.
            answer, body = _WithheldResponse(), _Body(receive)
            await self._app(scope, body, answer.hold)
            await self._strike(fault, answer, scope, body, send)

    async def _strike(self, fault: Fault, app: ASGIApp, scope: Scope, body: _Body, send: Send) -> None:
        await fault.hold()
        if fault.status == 0:
            await app(scope, body, send)
            return
        await body.read_to_the_end()
        if fault.status is None:
            # An incomplete response makes the server close the connection.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            return
        await Response(fault.body, fault.status, fault.headers)(scope, body, send)


class _Body:
    """A request's body; records whether it was read completely."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def read_to_the_end(self) -> None:
        # Closing a connection with an unread body resets it, and the client would see varying errors.
        while not self._ended:
            await self()


class _WithheldResponse:
    """A response that is withheld, to be sent later or dropped."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def hold(self, message: Message) -> None:
        self._messages.append(message)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        for message in self._messages:
            await send(message)


def make_app(routes: list[Route], *, exception_handlers: Any = None) -> Starlette:
    """Return a stand-in's application: its routes, fault injection, the request log, and endpoints to control these.

    `app.state.faults` and `app.state.requests` are for tests in the same process.
    """
    faults, log = Faults(), list[tuple[str, str]]()

    async def control_faults(request: Request) -> Response:
        if request.method == "DELETE":
            faults.clear()
            return JSONResponse({"faults": 0})
        try:
            faults.add(Fault(**await request.json()))
        except (TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"faults": len(faults.rules)})

    async def control_log(request: Request) -> Response:
        seen = list(log)
        if request.method == "DELETE":
            log.clear()
        return JSONResponse({"requests": seen})

    own = [
        Route("/_sandbox/faults", control_faults, methods=["POST", "DELETE"]),
        Route("/_sandbox/requests", control_log, methods=["GET", "DELETE"]),
    ]
    app = Starlette(routes=[*own, *routes], exception_handlers=exception_handlers or {})
    app.add_middleware(FaultMiddleware, faults=faults, log=log)
    app.state.faults, app.state.requests = faults, log
    return app


class _Server(uvicorn.Server):
    """A uvicorn server without signal handlers, which another thread can await and stop at once."""

    _loop: asyncio.AbstractEventLoop
    _stopped: asyncio.Event

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up_or_failed = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.is_up_or_failed.set()

    def stop(self) -> None:
        self.should_exit = True
        self.force_exit = True
        with suppress(RuntimeError):  # the loop is closed: the server has stopped already
            self._loop.call_soon_threadsafe(self._stopped.set)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)
        self.is_up_or_failed.set()

    async def main_loop(self) -> None:
        # uvicorn's own loop polls ten times a second.
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own shutdown always sleeps for a tenth of a second.
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)


def _config(app: ASGIApp, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off", **options)


@contextmanager
def running(app: ASGIApp, port: int = 0, *, certfile: str | None = None, keyfile: str | None = None) -> Iterator[str]:
    """Run a stand-in in a thread of this process.

    Args:
        app: The application.
        port: The port on loopback; a free one by default.
        certfile: The certificate, for https.
        keyfile: The certificate's private key.

    Yields:
        The base URL, without a trailing slash.

    Raises:
        RuntimeError: The server did not start.
    """
    # With an explicit protocol, asyncio disables Nagle's algorithm, which would delay each response by 40 ms.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = _Server(_config(app, ssl_certfile=certfile, ssl_keyfile=keyfile))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        if not (server.is_up_or_failed.wait(START_TIMEOUT_SECONDS) and server.started):
            raise RuntimeError("A stand-in did not start.")
        try:
            yield f"{'https' if certfile else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.stop()
            thread.join(timeout=START_TIMEOUT_SECONDS)


def serve(app: ASGIApp, port: int) -> None:
    """Run a stand-in in the foreground, on loopback, until it is interrupted."""
    uvicorn.Server(_config(app, host="127.0.0.1", port=port)).run()
