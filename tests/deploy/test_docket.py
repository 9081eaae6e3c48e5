"""How long docket, from which workers get their runs, waits for a Redis that answers nothing."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import docket
import pytest
from docket import Docket
from docket._redis import RedisConnection
from redis.exceptions import RedisError

from sandbox.redis import Redis
from tests.docs import pages
from tests.e2e.conftest import needs_redis

ADDRESS = re.compile(r"PREFECT_SERVER_DOCKET_URL=redis://\S+:6379/1(\?\S+)")
BLOCKING = re.compile(r"block=([\d_]+)")


def limits() -> str:
    """Return the limits in docket's address, as the page about the fleet writes it."""
    [said] = [found for block in pages.read("how-to/fleet.md") for found in ADDRESS.findall(block.text)]
    return str(said)


async def nothing() -> None:
    """Do nothing."""


async def test_docket_waits_longer_than_for_any_of_its_own_reads() -> None:
    """Docket itself sets no limit, because Redis answers some of its reads only after a minute without news."""
    connection = RedisConnection(f"redis://127.0.0.1:1/1{limits()}")
    sources = [file.read_text() for file in Path(docket.__file__).parent.rglob("*.py")]
    longest = max(int(found) for source in sources for found in BLOCKING.findall(source)) / 1000

    pool = await connection._connection_pool_from_url()

    assert pool.connection_kwargs["socket_connect_timeout"] == 5
    assert longest == 60
    assert pool.connection_kwargs["socket_timeout"] > longest


@needs_redis
@pytest.mark.e2e
async def test_docket_does_not_wait_for_ever_for_a_redis_that_hangs(tmp_path: Path) -> None:
    """A host that is gone closes no connection: without the limit, a worker's poll would hang for minutes."""
    redis = Redis(tmp_path)
    process = redis.start()
    address = redis.address(1) + limits().replace("=90", "=1")
    try:
        async with Docket("prefect", address) as tasks:
            await tasks.add(nothing)()
            process.popen.send_signal(signal.SIGSTOP)
            with pytest.raises(RedisError):
                await tasks.add(nothing)()
            process.popen.send_signal(signal.SIGCONT)
    finally:
        process.popen.send_signal(signal.SIGCONT)
        process.stop()
