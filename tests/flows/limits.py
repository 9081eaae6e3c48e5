"""The concurrency limits of a Prefect server, for tests of the slot without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self
from uuid import UUID, uuid4

import httpx
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound

from flows import slot
from flows.slot import Slot
from tasks.world.api import api_errors
from tasks.world.slots import RunAtWork


class FakeLimits:
    """A server's limits, the runs that hold and await their slots, and a clock that only sleeping advances."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.limits: dict[str, GlobalConcurrencyLimitResponse] = {}
        self.others: list[RunAtWork] = []
        self.asked: list[str] = []
        self.waits: list[float] = []
        self.taken_back_at: list[float] = []
        self.later: dict[float, Callable[[], object]] = {}
        self.failures: list[Exception] = []
        self.leases: dict[UUID, GlobalConcurrencyLimitResponse] = {}
        self.renewed: list[UUID] = []
        self.released: list[UUID] = []
        self.answers = asyncio.Event()
        self.answers.set()

    def add(self, limit: str, *, taken: bool) -> GlobalConcurrencyLimitResponse:
        """Add a limit of one slot."""
        self.limits[limit] = GlobalConcurrencyLimitResponse(name=limit, limit=1, active_slots=int(taken))
        return self.limits[limit]

    def now(self) -> float:
        """Return the time of the clock."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Advance the clock, and apply what is due by then."""
        self.waits.append(seconds)
        self.seconds += seconds
        for due in [at for at in self.later if at <= self.seconds]:
            self.later.pop(due)()

    async def increment_concurrency_slots_with_lease(
        self, names: list[str], slots: int, mode: str, lease_duration: float
    ) -> httpx.Response:
        """Grant or refuse a slot, like Prefect's server."""
        assert (slots, mode, lease_duration) == (1, "concurrency", slot.LEASE_SECONDS)
        [limit] = names
        self.asked.append(f"take {limit}")
        await self.answers.wait()
        if self.failures:
            raise self.failures.pop(0)
        found = self.limits.get(limit)
        if found is None:
            return httpx.Response(200, json={"lease_id": str(uuid4()), "limits": []})
        if found.limit < 1:
            raise status_error(422)
        if found.active and found.active_slots >= found.limit:
            raise status_error(423)
        found.active_slots += 1
        lease = uuid4()
        self.leases[lease] = found
        about = {"id": str(uuid4()), "name": limit, "limit": found.limit}
        return httpx.Response(200, json={"lease_id": str(lease), "limits": [about]})

    async def renew_concurrency_lease(self, lease_id: UUID, lease_duration: float) -> None:
        """Renew a lease, or fail to."""
        assert lease_duration == slot.LEASE_SECONDS
        self.renewed.append(lease_id)
        if self.failures:
            raise self.failures.pop(0)

    async def release_concurrency_slots_with_lease(self, lease_id: UUID) -> None:
        """Release a lease's slot, or fail to."""
        self.released.append(lease_id)
        if self.failures:
            raise self.failures.pop(0)
        self.leases.pop(lease_id).active_slots -= 1

    async def read_global_concurrency_limit_by_name(self, limit: str) -> GlobalConcurrencyLimitResponse:
        """Return a limit."""
        self.asked.append(f"read {limit}")
        if limit not in self.limits:
            raise ObjectNotFound(http_exc=status_error(404))
        return self.limits[limit]

    async def update_global_concurrency_limit(self, limit: str, update: GlobalConcurrencyLimitUpdate) -> None:
        """Set the number of taken slots."""
        assert update.active_slots == 0
        self.taken_back_at.append(self.seconds)
        self.limits[limit].active_slots = 0

    async def upsert_global_concurrency_limit_by_name(self, limit: str, _slots: int) -> None:
        """Create a limit, or give it its one slot again."""
        self.asked.append(f"make {limit}")
        if limit in self.limits:
            self.limits[limit].limit = 1
        else:
            self.add(limit, taken=False)

    async def note_waiting(self, _run: FlowRun, limit: str) -> None:
        """Record the slot for which the run waits."""
        self.asked.append(f"note {limit}")

    async def runs_at_work(self, _rotation: str, *, but: UUID) -> list[RunAtWork]:
        """Return the other runs."""
        self.asked.append("list runs")
        return list(self.others)

    @asynccontextmanager
    async def sent_once(self, doing: str) -> AsyncIterator[Self]:
        """Yield this server as the client of the gate."""
        with api_errors(doing):
            yield self

    def slot(self, *, emergency: bool = False) -> Slot:
        """Return the slot of a run that starts now."""
        run = FlowRun(id=uuid4(), flow_id=uuid4(), run_count=1)
        return Slot("checkout", run, emergency=emergency, sleep=self.sleep, now=self.now)


def status_error(status: int) -> httpx.HTTPStatusError:
    """Return an error response of the server."""
    request = httpx.Request("POST", "http://prefect")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))
