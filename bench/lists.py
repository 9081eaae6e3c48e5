"""Measure rotations whose keys are named in lists of the account."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from functools import partial
from typing import Any

import httpx

from bench.measuring import REQUESTS_PER_SECOND, ROTATIONS_UNDER_LOAD, Bench, rotation, timed
from blocks.openrouter.lists import ListKind

OVERLAP = timedelta(seconds=3)
FIELD = ListKind.BYOK.field
RESTED = 0.5
"""Seconds between two rotations."""


async def prepared(names: list[str], overlap: timedelta) -> list[Any]:
    """Return rotations that inherit, each after its first run."""
    from prefect.blocks.system import Secret

    from flows import rotate

    subjects = []
    for name in names:
        await Secret(value="not-yet-rotated").asave(name, overwrite=True)
        subjects.append(rotation(name, f"secret/{name}", overlap=overlap, inherit=True))
        await timed(lambda: rotate(subjects[-1], return_state=True))
    return subjects


async def held(bench: Bench, name: str) -> str:
    """Return the hash of the key that a destination holds."""
    return bench.sandbox.by_secret[await secret_of(name)].hash


async def secret_of(name: str) -> str:
    """Read a destination as a consumer does."""
    from prefect.blocks.system import Secret

    secret: Any = await Secret.aload(name)
    return str(secret.value.get_secret_value())


async def calls(bench: Bench) -> None:
    """Count the calls of a rotation with 0, 1 and 20 lists that name its key."""
    from flows import rotate

    account, counted = bench.sandbox.accounts[0], []
    [subject] = await prepared(["bench-lists"], timedelta(hours=1))
    for wanted in (0, 1, 20):
        current = await held(bench, subject.name)
        bench.sandbox.credentials.clear()
        for _ in range(wanted):
            bench.sandbox.add_credential(account, None, **{FIELD: [current]})
        bench.openrouter_app.state.requests.clear()
        await timed(lambda: rotate(subject, return_state=True))
        counted.append(len(bench.openrouter_app.state.requests))
    bench.sandbox.credentials.clear()
    first, one, twenty = counted
    what = "OpenRouter calls of a rotation that inherits, with 0, 1 and 20 lists"
    met = (one - first, twenty - first) == (1 + 3, 1 + 3 * 20)
    bench.row(what, f"{first}, {one} and {twenty}", "3 for each list, and 1 where there is any", met=met)


async def under_load(bench: Bench) -> None:
    """Count failed requests of consumers that need a BYOK credential which is for some keys only."""
    for what, names, overlap in (
        ("an overlap of 3 s", ["bench-byok"], OVERLAP),
        ("PT0S", ["bench-byok-at-once"], timedelta(0)),
        ("PT0S, two rotations at once", ["bench-byok-one", "bench-byok-other"], timedelta(0)),
    ):
        await _under_load(bench, what, names, overlap)


async def _under_load(bench: Bench, what: str, names: list[str], overlap: timedelta) -> None:
    from flows import retire, rotate

    subjects = await prepared(names, overlap)
    hashes = [await held(bench, name) for name in names]
    credential = bench.sandbox.add_credential(bench.sandbox.accounts[0], None, **{FIELD: hashes})
    answers: list[int] = []
    consumers = [asyncio.create_task(consume(bench, name, credential["id"], answers)) for name in names]
    for _ in range(ROTATIONS_UNDER_LOAD):
        await asyncio.gather(*(timed(partial(rotate, each, return_state=True)) for each in subjects))
        if overlap:
            await asyncio.sleep(overlap.total_seconds())
            await asyncio.gather(*(timed(partial(retire, each.name, return_state=True)) for each in subjects))
        await asyncio.sleep(RESTED)
    for consumer in consumers:
        consumer.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    failed = sum(status != httpx.codes.OK for status in answers)
    dead = len(set(credential[FIELD]) - set(bench.sandbox.keys))
    bench.sandbox.credentials.clear()
    found = f"{failed} of {len(answers)} failed, {dead} dead keys listed"
    aim = "0 and 0"
    title = f"requests with a BYOK credential at {REQUESTS_PER_SECOND}/s, {ROTATIONS_UNDER_LOAD} rotations, {what}"
    bench.row(title, found, aim, met=failed == dead == 0 and len(answers) > 0)


async def consume(bench: Bench, name: str, credential: str, answers: list[int]) -> None:
    """Send requests at a constant rate; after a refusal the secret is read again, and the request is made once more."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{bench.openrouter_url}/chat/completions?byok={credential}"
    key = await secret_of(name)
    async with httpx.AsyncClient(timeout=10) as client:
        while True:
            begun = time.monotonic()
            answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
            if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                key = await secret_of(name)
                answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
            answers.append(answer.status_code)
            await asyncio.sleep(max(0.0, begun + 1 / REQUESTS_PER_SECOND - time.monotonic()))
