"""Measure rotations whose keys are in lists of the account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import uuid4

import httpx

from bench.measuring import REQUESTS_PER_SECOND, ROTATIONS_UNDER_LOAD, Bench, rotation, timed
from blocks.openrouter.lists import ListKind
from sandbox.consumers import Consumer, read_secret
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox, StoredKey
from sandbox.server import Fault
from tasks.model.keys import NOT_YET_ROTATED

OVERLAP = timedelta(seconds=3)
FIELD = ListKind.BYOK.field
RESTED = 0.5
"""The pause between two rotations, in seconds."""


async def prepared(names: list[str], overlap: timedelta, *, inherit: bool = True, **key: Any) -> list[Any]:
    """Create rotations, and run each of them once."""
    from prefect.blocks.system import Secret

    from flows import rotate

    subjects = []
    for name in names:
        await Secret(value=NOT_YET_ROTATED).asave(name, overwrite=True)
        subjects.append(rotation(name, f"secret/{name}", overlap=overlap, inherit=inherit, **key))
        await timed(lambda: rotate(subjects[-1], return_state=True))
    return subjects


async def held(bench: Bench, name: str) -> str:
    """Return the hash of the key in a destination."""
    return bench.sandbox.by_secret[await read_secret(name)].hash


async def calls(bench: Bench) -> None:
    """Count the requests of a rotation whose key is in 0, 1 and 20 lists."""
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


async def price(bench: Bench) -> None:
    """Count the requests of a rotation with an overlap, of its retirement, and of both in one run."""
    from flows import retire, rotate

    log = bench.openrouter_app.state.requests
    for inherit, most in ((False, 4), (True, 4 + len(QUESTIONS) - len(ListKind))):
        name, counted = f"bench-price-{inherit}".lower(), []
        later, [at_once] = timedelta(seconds=1), await prepared([f"{name}-at-once"], timedelta(0), inherit=inherit)
        [subject] = await prepared([name], later, inherit=inherit)
        runs = partial(rotate, subject), partial(retire, name), partial(rotate, at_once)
        for run in runs:
            log.clear()
            await timed(partial(run, return_state=True))
            counted.append(len(log))
            await asyncio.sleep(later.total_seconds())
        what = f"OpenRouter calls, inherit {'on' if inherit else 'off'}: rotation, retirement, both in one run"
        aim = f"at most {most}, and 1 for the deletion"
        bench.row(what, ", ".join(map(str, counted)), aim, met=counted[0] <= most and counted[2] <= most + 1)


@dataclass(frozen=True)
class Question:
    """What a rotation that inherits reads each time, because it may have changed since the last one.

    Args:
        about: The subject.
        path: The endpoint for the current key.
        give: Gives it to a key.
        has: Returns whether a key has it.
    """

    about: str
    path: str
    give: Callable[[OpenRouterSandbox, StoredKey], Any]
    has: Callable[[OpenRouterSandbox, StoredKey], bool]


def give_limit(_: OpenRouterSandbox, key: StoredKey) -> None:
    """Limit a key, as a person does at OpenRouter."""
    key.limit = Decimal(80)


def give_guardrail(sandbox: OpenRouterSandbox, key: StoredKey) -> None:
    """Assign a new guardrail to a key."""
    key.guardrail_id = str(uuid4())
    sandbox.guardrails[key.guardrail_id] = {"id": key.guardrail_id, "workspace_id": key.workspace_id}


QUESTIONS = (
    Question("settings", "keys/{hash}", give_limit, lambda _, key: key.limit == Decimal(80)),
    Question("guardrail", "guardrails/assignments/keys", give_guardrail, lambda _, key: key.guardrail_id is not None),
    Question(
        ListKind.BYOK,
        ListKind.BYOK.path,
        lambda sandbox, key: sandbox.add_credential(key.account, None, **{ListKind.BYOK.field: [key.hash]}),
        lambda sandbox, key: any(key.hash in one[ListKind.BYOK.field] for one in sandbox.credentials.values()),
    ),
    Question(
        ListKind.BROADCAST,
        ListKind.BROADCAST.path,
        lambda sandbox, key: sandbox.add_broadcast(
            key.account, key.workspace_id, **{ListKind.BROADCAST.field: [key.hash]}
        ),
        lambda sandbox, key: any(key.hash in one[ListKind.BROADCAST.field] for one in sandbox.broadcasts.values()),
    ),
)
"""No single request answers two of these, and none shows whether any of them has changed."""


async def floor(bench: Bench) -> None:
    """Show that no read can be saved: with a cached response, the next key would lack a change made meanwhile."""
    noticed, missed = [], []
    for question in QUESTIONS:
        if await inherits(bench, question, remembered=False):
            noticed.append(question.about)
        if not await inherits(bench, question, remembered=True):
            missed.append(question.about)
    everything = [question.about for question in QUESTIONS]
    what = "changes of the account that the next rotation carries over, read anew / from the last run's answer"
    found = f"{len(noticed)} of {len(everything)} / {len(everything) - len(missed)}"
    bench.row(what, found, "all / none, so no read can be spared", met=noticed == missed == everything)


async def inherits(bench: Bench, question: Question, *, remembered: bool) -> bool:
    """Make a change after a rotation, and return whether the next key has it.

    Args:
        bench: The setup.
        question: The subject of the change.
        remembered: Whether the next rotation gets the response from before the change.
    """
    from flows import rotate

    sandbox, faults = bench.sandbox, bench.openrouter_app.state.faults
    name = f"bench-floor-{len(sandbox.created)}"
    [subject] = await prepared([name], timedelta(hours=1), limit_usd=None, limit_reset="none")
    current = sandbox.keys[await held(bench, name)]
    path = question.path.format(hash=current.hash)
    if remembered:
        faults.add(Fault("before", "GET", f"/{path}$", status=200, body=await answer_of(bench, path)))
    question.give(sandbox, current)
    await timed(partial(rotate, subject, return_state=True))
    faults.clear()
    inherited = question.has(sandbox, sandbox.keys[await held(bench, name)])
    sandbox.credentials.clear()
    sandbox.broadcasts.clear()
    current.guardrail_id = None
    return inherited


async def answer_of(bench: Bench, path: str) -> str:
    """Return OpenRouter's present response."""
    async with httpx.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {DEFAULT_MANAGEMENT_KEY}"}
        return (await client.get(f"{bench.openrouter_url}/{path}", headers=headers)).text


async def under_load(bench: Bench) -> None:
    """Count failed requests of consumers that need a BYOK credential restricted to some keys."""
    for what, names, overlap in (
        ("an overlap of 3 s", ["bench-byok"], OVERLAP),
        ("an overlap of 3 s, two rotations at once", ["bench-byok-a", "bench-byok-b"], OVERLAP),
        ("PT0S", ["bench-byok-at-once"], timedelta(0)),
        ("PT0S, two rotations at once", ["bench-byok-one", "bench-byok-other"], timedelta(0)),
    ):
        await _under_load(bench, what, names, overlap)


async def _under_load(bench: Bench, what: str, names: list[str], overlap: timedelta) -> None:
    from flows import retire, rotate

    subjects = await prepared(names, overlap)
    hashes = [await held(bench, name) for name in names]
    credential = bench.sandbox.add_credential(bench.sandbox.accounts[0], None, **{FIELD: hashes})
    consumers = [
        Consumer(
            bench.openrouter_url,
            partial(read_secret, name),
            REQUESTS_PER_SECOND,
            credential=credential["id"],
            retries=not overlap,
        )
        for name in names
    ]
    working = [asyncio.create_task(consumer.work()) for consumer in consumers]
    for _ in range(ROTATIONS_UNDER_LOAD):
        await asyncio.gather(*(timed(partial(rotate, each, return_state=True)) for each in subjects))
        if overlap:
            await asyncio.sleep(overlap.total_seconds())
            await asyncio.gather(*(timed(partial(retire, each.name, return_state=True)) for each in subjects))
        await asyncio.sleep(RESTED)
    for each in working:
        each.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    failed, sent = sum(each.failed for each in consumers), sum(each.answers.total() for each in consumers)
    dead = len(set(credential[FIELD]) - set(bench.sandbox.keys))
    bench.sandbox.credentials.clear()
    found = f"{failed} of {sent} failed, {dead} dead keys listed"
    aim = "0 and 0"
    title = f"requests with a BYOK credential at {REQUESTS_PER_SECOND}/s, {ROTATIONS_UNDER_LOAD} rotations, {what}"
    bench.row(title, found, aim, met=failed == dead == 0 and sent > 0)
