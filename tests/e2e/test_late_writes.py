"""Prefect's API is down for one run while another rotates: late requests have no effect, or do no harm."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from flows import retire, rotate
from sandbox.stack import WORKER_TYPE
from tasks.model.rotation import Rotation
from tests.by_hand import end_overlap, ledger_value
from tests.e2e.conftest import Services, with_kills
from tests.e2e.driver import begin_rotation
from tests.e2e.late import check_repaired, overtaken, watched
from tests.e2e.processes import (
    check_converged,
    check_nothing_leaked,
    ended_by_itself,
    held_by,
    process,
)
from tests.e2e.proxy import Outage, Request, serving

pytestmark = with_kills
LEDGER = "POST /api/variables/"
SECRET = "PATCH /api/block_documents/"
SHORT_SECONDS = 5.0
LONGER_THAN_A_LEASE_SECONDS = 75.0
SPARE = 2
STORES = pytest.mark.parametrize("store", ["secret", "vault-secret"])


@pytest.fixture(params=[WORKER_TYPE, pytest.param("process", marks=pytest.mark.exhaustive)])
def services(services: Services, request: pytest.FixtureRequest) -> Services:
    """The run that is overtaken is a thread of a worker, or a process of its own."""
    services.worker_type = request.param
    return services


async def with_a_key(services: Services, store: str) -> Rotation:
    """Rotate for the first time, with superseded keys that end at once."""
    rotation = services.rotation()
    rotation = await services.prepare(rotation.model_copy(update={"destinations": [f"{store}/{rotation.name}"]}))
    assert (await rotate(rotation, return_state=True)).is_completed()
    return rotation


def writes_of_the_ledger(outage: Outage) -> list[Request]:
    """Return the refused writes of the ledger."""
    return [request for request in outage.refused if request.line.startswith(LEDGER)]


@pytest.mark.parametrize(
    ("store", "first", "skip"),
    [("vault-secret", LEDGER, 1), ("secret", SECRET, 0), ("secret", LEDGER, 3)],
    ids=["that writes down which key was created", "to the secret", "that makes the key the current one"],
)
@pytest.mark.parametrize(
    "commits", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["lost", "committed"]
)
async def test_a_run_that_is_overtaken_while_its_write_is_refused_says_so_and_does_no_harm(
    services: Services, store: str, first: str, skip: int, commits: bool
) -> None:
    """Every destination holds a working key all the time, and one key is left after the next run."""
    rotation = await with_a_key(services, store)
    outage = Outage(services.stack.url, skip, first=first, retry_after=SHORT_SECONDS, commits=commits)

    await overtaken(services, rotation, outage)

    await check_repaired(services, rotation)
    check_nothing_leaked(services)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("commits", [False, True], ids=["lost", "committed"])
@STORES
async def test_an_outage_longer_than_a_lease_that_begins_at_any_write_does_no_harm(
    services: Services, store: str, commits: bool
) -> None:
    """The lease expires, B rotates, A continues; afterwards each of A's ledger writes arrives three times more."""
    seen = await writes_of_a_rotation(services, store)
    # A lease may be renewed more often in some of them, so their last writes come later.
    skips = range(len(seen) + SPARE)
    rotations = [await with_a_key(services, store) for _ in skips]
    outages = [
        Outage(services.stack.url, skip, retry_after=LONGER_THAN_A_LEASE_SECONDS, commits=commits) for skip in skips
    ]

    # Two cores cannot start all of them at once, but they can wait for their leases to expire concurrently.
    turn = asyncio.Lock()

    async def history(outage: Outage, rotation: Rotation) -> None:
        await overtaken(services, rotation, outage, turn=turn, longer=LONGER_THAN_A_LEASE_SECONDS)
        await deliver_without_effect(outage, rotation, writes_of_the_ledger(outage) * 3)
        async with turn:
            await check_repaired(services, rotation, outage.writes)

    results = await asyncio.gather(*map(history, outages, rotations), return_exceptions=True)

    failed = {skip: result for skip, result in enumerate(results) if result is not None}
    assert failed == {}
    assert {kind(outage.refused[0].line) for outage in outages if outage.refused} == {kind(line) for line in seen}
    check_nothing_leaked(services)


def kind(line: str) -> str:
    """Return the kind of a write, without the id of its record."""
    return re.sub(r"[0-9a-f-]{36}|/name/\S+", "…", line)


async def writes_of_a_rotation(services: Services, store: str) -> list[str]:
    """Return the writes to Prefect's API of a rotation without failures."""
    rotation = await with_a_key(services, store)
    outage = Outage(services.stack.url, first="nothing")
    run_id = await begin_rotation(rotation)
    async with serving(outage):
        with process(services, run_id, outage.url) as running:
            await ended_by_itself(running)
    assert len(outage.writes) > 10
    return outage.writes


async def deliver_without_effect(outage: Outage, rotation: Rotation, requests: list[Request]) -> None:
    """Verify that delivering late writes changes neither the ledger nor a destination."""

    async def now() -> tuple[Any, set[str]]:
        return await ledger_value(rotation.name), await held_by(rotation)

    before = await now()
    for request in requests:
        await outage.deliver(request)
    assert await now() == before


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
async def test_a_secret_written_late_brings_in_a_key_that_works_until_the_next_run(
    services: Services, times: int
) -> None:
    """The key of the refused write is kept, and not revoked while the secret holds it."""
    rotation = await with_a_key(services, "secret")
    outage = Outage(services.stack.url, first=SECRET, retry_after=SHORT_SECONDS)
    await overtaken(services, rotation, outage)
    patch = next(request for request in outage.refused if request.line.startswith(SECRET))
    current = await held_by(rotation)

    async with watched(services, rotation):
        for _ in range(times):
            assert await outage.deliver(patch) == 204
        assert await held_by(rotation) != current
        await end_overlap(rotation.name)
        kept = await retire(rotation.name, return_state=True)
        repaired = await rotate(rotation, return_state=True)

    assert kept.is_failed()
    assert f"because it is still held by secret/{rotation.name}" in str(kept.message)
    assert repaired.is_completed(), repaired.message
    await check_repaired(services, rotation)
    await check_converged(services, rotation)
