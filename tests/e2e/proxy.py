"""A proxy in front of Prefect's API, which can hold or refuse a request at the right moment."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

CHUNK = 65536
HEAD_END = b"\r\n\r\n"
REFUSAL = b"HTTP/1.1 410 Gone\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
When = Literal["before", "after", "refused"]
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
WRITES = re.compile(r"(POST|PATCH|PUT|DELETE) /api/(?!logs/|\S*/(filter|count|paginate|history)\b)")
"""The requests with which a run changes something in Prefect, without reads and logs."""


class Request(NamedTuple):
    """A request as it was sent.

    Args:
        line: Its method and path, such as `PATCH /api/variables/`.
        raw: All its bytes.
    """

    line: str
    raw: bytes


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read one request to its end; `None` once the client has closed the connection."""
    try:
        head = await reader.readuntil(HEAD_END)
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
    except asyncio.IncompleteReadError:
        return None
    method, path, *_ = head.decode("latin-1").split(" ", 2)
    return Request(f"{method} {path}", head + body)


class Proxy:
    """Forwards requests to a server, and bytes after an upgrade to a websocket.

    Args:
        server: The server's address.
    """

    def __init__(self, server: str) -> None:
        self._server = urlsplit(server)
        self._gone = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        answers, requests = await self._connect()
        held = asyncio.Event()
        ways = [
            asyncio.ensure_future(self._pass_requests(reader, requests, writer, held)),
            asyncio.ensure_future(self._pass_answers(answers, writer, held)),
            asyncio.ensure_future(self._gone.wait()),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (requests, writer):
            end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._server.hostname, self._server.port)

    async def _pass_requests(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        held: asyncio.Event,
    ) -> None:
        while request := await read_request(reader):
            answer = await self.meet(request, held)
            if answer is not None:
                client.write(answer)
                await client.drain()
                return
            server.write(request.raw)
            await server.drain()
            if b"\r\nupgrade: websocket\r\n" in request.raw.lower():
                break
        while chunk := await reader.read(CHUNK):
            server.write(chunk)
            await server.drain()

    async def _pass_answers(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, held: asyncio.Event
    ) -> None:
        while chunk := await server.read(CHUNK):
            if held.is_set():
                await self.hold_answer()
            writer.write(chunk)
            await writer.drain()

    async def meet(self, request: Request, held: asyncio.Event) -> bytes | None:
        """Return the answer that refuses a request, `None` to let it pass; set `held` to hold its answer."""
        return None

    async def hold_answer(self) -> None:
        """Wait until the proxy is closed."""
        await self._gone.wait()

    def close(self) -> None:
        """Close every connection."""
        self._gone.set()


class Barrier(Proxy):
    """Holds or refuses requests of one kind.

    Args:
        server: The server's address.
        when: Whether to hold a matching request `before` it reaches the server, to hold its answer (`after`), or to
            answer it like a server that does not renew an expired lease (`refused`).
        request: A regular expression for method and path, such as `PATCH /api/variables/`.
        skip: How many matching requests to let through first.
    """

    def __init__(self, server: str, when: When, request: str, skip: int = 0) -> None:
        super().__init__(server)
        self._when = when
        self._request = re.compile(request)
        self._skip = skip
        self.reached = asyncio.Event()

    async def meet(self, request: Request, held: asyncio.Event) -> bytes | None:
        """Hold or refuse a matching request."""
        if not self._strikes(request):
            return None
        if self._when == "refused":
            self.reached.set()
            return REFUSAL
        if self._when == "before":
            self.reached.set()
            await self._gone.wait()
        held.set()
        return None

    async def hold_answer(self) -> None:
        """Signal that the server has answered, and wait until the proxy is closed."""
        self.reached.set()
        await super().hold_answer()

    def _strikes(self, request: Request) -> bool:
        if not self._request.match(request.line):
            return False
        if self._skip:
            self._skip -= 1
            return False
        return self._when == "refused" or not self.reached.is_set()


class Outage(Proxy):
    """Answers 503 to a write to Prefect's API, and to all later ones until the outage is over; reads pass.

    Args:
        server: The server's address.
        skip: How many writes that match `first` to let through before it begins.
        first: A regular expression for method and path of the write with which it begins; any by default.
        retry_after: The Retry-After of its answers, in seconds.
        commits: Whether the first write takes effect and only its answer is lost.
    """

    def __init__(
        self, server: str, skip: int = 0, *, first: str = "", retry_after: float = 0, commits: bool = False
    ) -> None:
        super().__init__(server)
        self._skip = skip
        self._first = re.compile(first)
        self._retry_after = retry_after
        self._commits = commits
        self.began = asyncio.Event()
        self.is_over = False
        self.writes: list[str] = []
        self.refused: list[Request] = []

    async def meet(self, request: Request, held: asyncio.Event) -> bytes | None:
        """Refuse writes during the outage."""
        if not WRITES.match(request.line):
            return None
        self.writes.append(request.line)
        if self.is_over or not self._has_begun(request):
            return None
        if self._commits and not self.refused:
            await self.deliver(request)
        self.refused.append(request)
        self.began.set()
        return (
            f"HTTP/1.1 503 Service Unavailable\r\nretry-after: {self._retry_after:g}\r\n"
            "content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
        ).encode()

    def _has_begun(self, request: Request) -> bool:
        if self.began.is_set():
            return True
        if not self._first.match(request.line):
            return False
        self._skip -= 1
        return self._skip < 0

    async def deliver(self, request: Request) -> int:
        """Send a refused write to the server now, and return the status of the answer."""
        answers, requests = await self._connect()
        requests.write(request.raw)
        await requests.drain()
        head = await answers.readuntil(HEAD_END)
        requests.close()
        return int(head.split(b" ", 2)[1])


P = TypeVar("P", bound=Proxy)


@asynccontextmanager
async def serving(made: P) -> AsyncIterator[P]:
    """Run a proxy in this event loop."""
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        made.close()
        listening.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(listening.wait_closed(), 5)
