"""Receivers of notifications on loopback: a URL and a mailbox."""

from __future__ import annotations

import asyncio
import email
import email.policy
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.server import running

TOLD_WITHIN_SECONDS = 120.0


class Receiver:
    """Receives notifications.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.heard: list[str] = []
        self.paths: list[str] = []

    async def waits_for(self, *words: str) -> str:
        """Wait until a message with all of these words has arrived."""
        deadline = time.monotonic() + TOLD_WITHIN_SECONDS
        while time.monotonic() < deadline:
            for text in self.heard:
                if all(word in text for word in words):
                    return text
            await asyncio.sleep(0.1)
        raise AssertionError(f"nobody said {words}, only {self.heard}")


@contextmanager
def web_receiver(answer: str = "") -> Iterator[Receiver]:
    """Run a receiver of HTTP requests, with a fixed answer."""
    receiver = Receiver("")

    async def hear(request: Request) -> Response:
        receiver.heard.append((await request.body()).decode())
        receiver.paths.append(request.url.path)
        return Response(answer)

    with running(Starlette(routes=[Route("/{any:path}", hear, methods=["POST"])])) as receiver.url:
        yield receiver


@asynccontextmanager
async def mailbox() -> AsyncIterator[Receiver]:
    """Run a receiver of e-mail: a mail server that accepts everything without a login."""
    receiver = Receiver("")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        while line := (await reader.readline()).strip().upper():
            if line == b"DATA":
                writer.write(b"354 go on\r\n")
                message = email.message_from_bytes(await reader.readuntil(b"\r\n.\r\n"), policy=email.policy.default)
                body = message.get_body(("plain",))
                receiver.heard.append(f"To: {message['To']} | {message['Subject']} | {body and body.get_content()}")
            writer.write(b"250 done\r\n")
            if line == b"QUIT":
                break
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        receiver.url = "{}:{}".format(*server.sockets[0].getsockname())
        yield receiver
