"""A load balancer for several servers on loopback: nginx, or this module's forwarder if it is not installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

from sandbox.stack import CHECKOUT, Process, wait_until

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
"""The path of nginx; `None` if it is not installed."""
CONFIGURATION = """
daemon off;
master_process off;
pid {home}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  upstream servers {{
    {servers}
    keepalive 32;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://servers;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_connect_timeout 2s;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""
CHUNK = 65536
TIMEOUT_SECONDS = 2.0


def start_balancer(home: Path, port: int, servers: list[int]) -> Process:
    """Start a balancer in front of servers, and wait until it listens.

    Args:
        home: The folder for its files.
        port: Its port on loopback.
        servers: The ports of the servers.

    Returns:
        Its process.

    Raises:
        RuntimeError: It did not start; the message includes the end of its log.
    """
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(CHECKOUT)}
    log = home / "logs" / "balancer.log"
    if NGINX:
        listed = "\n    ".join(f"server 127.0.0.1:{each} max_fails=1 fail_timeout=2s;" for each in servers)
        (home / "nginx.conf").write_text(CONFIGURATION.format(home=home, port=port, servers=listed))
        command = [NGINX, "-c", str(home / "nginx.conf"), "-p", str(home), "-e", "stderr"]
    else:
        command = [sys.executable, "-m", "sandbox.balancer", str(port), *map(str, servers)]
    process = Process(command, env, log)
    wait_until(lambda: _listens(port), process, "The balancer")
    return process


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


class Forwarder:
    """Connects each client to the next server that accepts it.

    Args:
        servers: The ports of the servers.
    """

    def __init__(self, servers: list[int]) -> None:
        self._servers = servers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client until the connection ends on either side."""
        try:
            for _ in self._servers:
                self._servers.append(self._servers.pop(0))
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        server = await asyncio.open_connection("127.0.0.1", self._servers[0])
                    await asyncio.gather(_copy(reader, server[1]), _copy(server[0], writer))
                    return
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                writer.write(chunk)
                await writer.drain()
    finally:
        writer.close()


async def _forward(port: int, servers: list[int]) -> None:
    async with await asyncio.start_server(Forwarder(servers).serve, "127.0.0.1", port) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(_forward(int(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
