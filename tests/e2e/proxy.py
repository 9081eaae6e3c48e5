"""A proxy before Prefect's API: it knows the moment of a request, and holds it or refuses it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

CHUNK = 65536
REFUSAL = b"HTTP/1.1 410 Gone\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
When = Literal["before", "after", "refused"]
REQUEST_LINE = re.compile(rb"^([A-Z]+ \S+) HTTP/1\.1\r\n")


class Proxy:
    """Hands bytes on between clients and a server, so that websockets pass as well.

    Args:
        server: The server's address.
        when: Whether a request that matches is held `before` it reaches the server, held `after` the server has
            answered it, or `refused`, as the server refuses to renew a lease that it has given up.
        request: A regular expression for method and path, such as `PATCH /api/variables/`.
        skip: How many such requests pass first.
    """

    def __init__(self, server: str, when: When, request: str, skip: int = 0) -> None:
        self._server = urlsplit(server)
        self._when = when
        self._request = re.compile(request.encode())
        self._skip = skip
        self._gone = asyncio.Event()
        self.reached = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        answers, requests = await asyncio.open_connection(self._server.hostname, self._server.port)
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

    async def _pass_requests(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        held: asyncio.Event,
    ) -> None:
        while chunk := await reader.read(CHUNK):
            if self._strikes(chunk):
                if self._when == "refused":
                    self.reached.set()
                    client.write(REFUSAL)
                    await client.drain()
                    return
                if self._when == "before":
                    self.reached.set()
                    await self._gone.wait()
                held.set()
            server.write(chunk)
            await server.drain()

    async def _pass_answers(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, held: asyncio.Event
    ) -> None:
        while chunk := await server.read(CHUNK):
            if held.is_set():
                self.reached.set()
                await self._gone.wait()
            writer.write(chunk)
            await writer.drain()

    def _strikes(self, chunk: bytes) -> bool:
        line = REQUEST_LINE.match(chunk)
        if line is None or not self._request.match(line[1]):
            return False
        if self._skip:
            self._skip -= 1
            return False
        return self._when == "refused" or not self.reached.is_set()

    def close(self) -> None:
        """Cut every connection."""
        self._gone.set()


@asynccontextmanager
async def proxy(server: str, when: When, request: str, skip: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy in this event loop."""
    made = Proxy(server, when, request, skip)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        made.close()
        listening.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(listening.wait_closed(), 5)
