"""Two runs of one rotation: Prefect's API rejects run A's writes, and run B rotates meanwhile."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from multiprocessing.process import BaseProcess
from typing import Any
from uuid import UUID

from prefect import State

from flows import retire, rotate
from tasks.model.rotation import Rotation
from tests.by_hand import end_overlap, ledger_of
from tests.e2e.conftest import Services
from tests.e2e.driver import begin_rotation, ended
from tests.e2e.processes import check_no_outage, check_one_key, give_the_slot_back, held_at, process
from tests.e2e.proxy import Outage, serving

ATTEMPTS = 3
NAMED_KEY = re.compile(r"\bthe key (sk-or-v1-\S+) is live", re.IGNORECASE)


class Watch:
    """A consumer that repeatedly reads every destination, and uses what it has read at OpenRouter."""

    def __init__(self, services: Services, rotation: Rotation) -> None:
        self._services = services
        self._rotation = rotation
        self.seen: set[str] = set()
        """The labels of the keys that it has read."""

    async def look(self) -> None:
        """Read each destination once."""
        for name in self._rotation.destinations:
            held = await held_at(name)
            if not all(self._services.openrouter.is_live(secret) for secret in held):
                # The key may have been replaced, and revoked, since it was read: a consumer would read again.
                held = await held_at(name)
            assert held, name
            assert all(self._services.openrouter.is_live(secret) for secret in held), name
            self.seen |= {key.label for key in self._services.openrouter.keys.values() if key.secret in held}

    async def go_on(self, every: float) -> None:
        """Read every so many seconds, until this is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(every)


@asynccontextmanager
async def watched(services: Services, rotation: Rotation, every: float = 0.2) -> AsyncIterator[Watch]:
    """Verify that every destination holds a working key all the time."""
    watch = Watch(services, rotation)
    await watch.look()
    reading = asyncio.create_task(watch.go_on(every))
    try:
        yield watch
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    await watch.look()


async def rotated(rotation: Rotation, during: object = "") -> None:
    """Rotate; again where the server, busy with a dozen such histories, refuses a write, as a scheduled try would."""
    for _ in range(ATTEMPTS):
        state = await rotate(rotation, return_state=True)
        if state.is_completed():
            return
    raise AssertionError((during, state.message))


async def until_it_begins(outage: Outage, a: BaseProcess) -> None:
    """Wait until run A meets the outage, or ends with fewer writes."""
    while a.is_alive() and not outage.began.is_set():  # noqa: ASYNC110 - a process has no event
        await asyncio.sleep(0.02)


async def overtaken(
    services: Services,
    rotation: Rotation,
    outage: Outage,
    *,
    turn: AbstractAsyncContextManager[Any] | None = None,
    longer: float = 0,
) -> None:
    """Take run A through an outage during which run B rotates; then A must end with a true message.

    Args:
        services: The stand-ins.
        rotation: The rotation, which has a key.
        outage: The outage.
        turn: A lock that A holds until it meets the outage, if many such histories run at once; B then waits until A's
            lease has expired. Without it, A's slot is released by hand.
        longer: The minimum duration of the outage, in seconds.
    """
    async with serving(outage), watched(services, rotation, 5.0 if turn else 0.2) as watch, AsyncExitStack() as stack:
        async with turn or nullcontext():
            run_id = await begin_rotation(rotation)
            a = stack.enter_context(process(services, run_id, outage.url))
            await until_it_begins(outage, a)
        # If A's last write is committed and its answer lost, B must follow before A's next ledger check.
        await watch.look()
        began = time.monotonic()
        if turn is None:
            await give_the_slot_back(rotation.name)
        await rotated(rotation)
        await asyncio.sleep(max(0.0, longer - (time.monotonic() - began)))
        outage.is_over = True
        state = (await ended(run_id, within=300)).state
    assert state is not None
    await check_sentence(rotation, run_id, state, watch)


async def check_sentence(rotation: Rotation, run_id: UUID, state: State, watch: Watch) -> None:
    """Verify that a run that met an outage tells the truth about its end and the live key."""
    said = str(state.message)
    ledger = await ledger_of(rotation.name)
    named = NAMED_KEY.search(said)
    assert named, said
    assert ledger.current, said
    if state.is_completed():
        # Another run may have rotated after this one had done its work.
        assert named[1] in watch.seen, (said, ledger)
        assert said.startswith(("Rotated: ", "Already rotated: ", "Finished an interrupted rotation: ")), said
        assert named[1] == ledger.current.label or ledger.current.made_by != run_id, (said, ledger)
    else:
        assert state.is_failed(), said
        assert "Could not " in said, said
        assert named[1] == ledger.current.label, (said, ledger)
        assert "Retry is safe" in said, said


async def check_repaired(services: Services, rotation: Rotation, during: object = "") -> None:
    """Verify that one live key is left after the next run, once no late write can arrive any more."""
    await rotated(rotation, during)
    await check_no_outage(services, rotation, during)
    ledger = await ledger_of(rotation.name)
    assert all(key.late_until for key in ledger.superseded), (during, ledger)
    if ledger.superseded:
        await end_overlap(rotation.name)
        retired = await retire(rotation.name, return_state=True)
        assert retired.is_completed(), (during, retired.message)
    await check_one_key(services, rotation, during)
