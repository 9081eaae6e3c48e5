"""A rotation's slot: its name, who waits for it and for how long, and who reclaims it."""

from __future__ import annotations

import pkgutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import Flow
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError
from prefect.exceptions import ObjectNotFound

import flows
from blocks.errors import PlaceLostError, ServiceError
from flows import slot
from flows.runs import open_run
from flows.slot import LOOK_AFTER_SECONDS, WAIT_SECONDS, Slot, emergency_slot_of, may_reclaim, slot_of
from tasks.model.rotation import is_slug
from tasks.world.inventory import OPENING_A_LEDGER, RunAtWork
from tasks.world.ledgers import term_variable

slugs = st.from_regex(r"[a-z0-9]{1,3}(-[a-z0-9]{1,9}){0,3}", fullmatch=True).filter(is_slug)


@given(slugs, slugs, st.integers(1, 10**7), st.integers(1, 10**7))
def test_no_name_of_one_rotation_is_one_of_another(one: str, other: str, term: int, another: int) -> None:
    """No two rotations share a slot or a ledger, whatever their names; `checkout-emergency` is an ordinary name."""
    names = {slot_of(one), emergency_slot_of(one), term_variable(one, term)}
    others = {slot_of(other), emergency_slot_of(other), term_variable(other, another)}

    assert one == other or not names & others


def test_a_rotation_called_emergency_has_a_slot_of_its_own() -> None:
    """The slot for emergencies is not that of any rotation."""
    assert emergency_slot_of("checkout") != slot_of("checkout-emergency")


def test_a_run_of_every_flow_that_takes_a_slot_counts_as_its_holder() -> None:
    """A slot is reclaimed only if its holder is no longer running, whichever flow the holder runs."""
    modules = [import_module(f"flows.{found.name}") for found in pkgutil.iter_modules(flows.__path__)]
    taking = {
        value.name
        for module in modules
        if vars(module).get("open_run") is open_run
        for value in vars(module).values()
        if isinstance(value, Flow) and value.fn.__module__ == module.__name__
    }

    assert taking == set(OPENING_A_LEDGER)


SLOT = slot_of("checkout")


@given(
    st.lists(
        st.builds(RunAtWork, st.uuids().map(str), st.booleans(), st.just(SLOT)),
        min_size=1,
        unique_by=lambda run: run.id,
    )
)
def test_of_the_runs_that_wait_for_a_leaked_slot_exactly_one_reclaims_it(waiting: list[RunAtWork]) -> None:
    """They do not take each other for the holder; an emergency reclaims it before all others."""
    reclaiming = [own for own in waiting if may_reclaim(SLOT, own, [run for run in waiting if run != own])]

    assert len(reclaiming) == 1
    assert reclaiming[0].is_emergency == any(run.is_emergency for run in waiting)


def test_a_slot_is_not_reclaimed_from_a_run_that_waits_for_none_or_another() -> None:
    """Such a run may be the holder."""
    own = RunAtWork("1", is_emergency=True, waits_for=SLOT)

    for waits_for in ("", emergency_slot_of("checkout")):
        assert not may_reclaim(SLOT, own, [RunAtWork("2", is_emergency=False, waits_for=waits_for)])


PROMISED_SECONDS = 120.0
"""How long a slot whose holder has ended may delay a run."""


class FakePrefect:
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

    @asynccontextmanager
    async def concurrency(self, limit: str, *, max_retries: int | None = None, **_: Any) -> AsyncIterator[None]:
        """Grant or refuse a slot, like Prefect without its own repetitions."""
        assert max_retries == 0, "Prefect would let the runs of one process wait for each other"
        self.asked.append(f"take {limit}")
        if self.failures:
            raise self.failures.pop(0)
        found = self.limits.get(limit)
        if found is None:
            raise ConcurrencySlotAcquisitionError("must be created")
        if found.active and found.active_slots >= found.limit:
            raise ConcurrencySlotAcquisitionError("423") from status_error(423)
        found.active_slots += 1
        yield
        found.active_slots -= 1

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
        """Create a limit."""
        self.asked.append(f"make {limit}")
        self.add(limit, taken=False)

    async def note_waiting(self, _run: FlowRun, limit: str) -> None:
        """Record the slot for which the run waits."""
        self.asked.append(f"note {limit}")

    async def runs_at_work(self, _rotation: str, *, but: UUID) -> list[RunAtWork]:
        """Return the other runs."""
        self.asked.append("list runs")
        return list(self.others)

    def slot(self, *, emergency: bool = False) -> Slot:
        """Return the slot of a run that starts now."""
        run = FlowRun(id=uuid4(), flow_id=uuid4(), run_count=1)
        return Slot("checkout", run, emergency=emergency, sleep=self.sleep, now=self.now)


def status_error(status: int) -> httpx.HTTPStatusError:
    """Return an error response of the server."""
    request = httpx.Request("POST", "http://prefect")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    """A server without limits and without other runs."""
    made = FakePrefect()
    monkeypatch.setattr(slot, "get_or_create_client", lambda: (made, True))
    for name in ("concurrency", "note_waiting", "runs_at_work"):
        monkeypatch.setattr(slot, name, getattr(made, name))
    return made


async def taken(made: Slot) -> list[str]:
    """Take and release a slot, and return the notes about repairs."""
    async with AsyncExitStack() as stack:
        await made.take(stack)
    return made.notes


EMERGENCY = emergency_slot_of("checkout")
HOLDER = RunAtWork("0", is_emergency=False, waits_for="")


async def test_a_slot_that_is_free_costs_one_request_and_a_look_for_an_emergency(prefect: FakePrefect) -> None:
    """The run neither records that it waits, nor waits."""
    prefect.add(SLOT, taken=False)

    await taken(prefect.slot())

    assert prefect.asked == [f"take {SLOT}", f"read {EMERGENCY}"]
    assert prefect.waits == []


async def test_a_run_notes_that_it_waits_before_it_waits(prefect: FakePrefect) -> None:
    """From its first refusal until it has the slot, other runs must not take it for the holder."""
    limit = prefect.add(SLOT, taken=True)
    prefect.others = [HOLDER]
    prefect.later[3.0] = lambda: setattr(limit, "active_slots", 0)

    await taken(prefect.slot())

    noted = [f"take {SLOT}", f"note {SLOT}"]
    assert prefect.asked[:2] == noted
    assert prefect.asked[-3:] == [f"take {SLOT}", "note ", f"read {EMERGENCY}"]
    assert set(prefect.asked[2:-3]) == {f"read {SLOT}"}


async def test_waiting_runs_look_again_after_one_to_two_seconds_and_not_in_step(prefect: FakePrefect) -> None:
    """A slot is soon taken again, and runs that a worker started together must not ask at the same times."""
    limit = prefect.add(SLOT, taken=True)
    prefect.others = [HOLDER]
    prefect.later[30.0] = lambda: setattr(limit, "active_slots", 0)

    await taken(prefect.slot())

    assert all(1 <= wait <= 2 for wait in prefect.waits)
    assert len(set(prefect.waits)) > 1


@pytest.mark.parametrize("waiting", [0, 1, 6])
@pytest.mark.parametrize("leaked", [[SLOT], [SLOT, EMERGENCY]], ids=["slot", "both"])
async def test_a_leaked_slot_stops_an_emergency_for_two_minutes_at_most(
    prefect: FakePrefect, waiting: int, leaked: list[str]
) -> None:
    """This holds beside any number of waiting runs, and no slot is reclaimed before the emergency has waited."""
    for limit in (SLOT, EMERGENCY):
        prefect.add(limit, taken=limit in leaked)
    prefect.others = [RunAtWork(str(number), is_emergency=False, waits_for=SLOT) for number in range(waiting)]

    notes = await taken(prefect.slot(emergency=True))

    assert [f"The slot {limit} was reclaimed" in " ".join(notes) for limit in leaked] == [True] * len(leaked)
    assert all(LOOK_AFTER_SECONDS <= at <= PROMISED_SECONDS for at in prefect.taken_back_at)
    assert len(prefect.taken_back_at) == len(leaked)


async def test_a_run_that_has_just_got_the_slot_keeps_it(prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment, a run that has the slot is still recorded as waiting."""
    limit = prefect.add(SLOT, taken=True)
    prefect.others = [RunAtWork("f" * 36, is_emergency=False, waits_for=SLOT)]

    async def list_and_clear(rotation: str, *, but: UUID) -> list[RunAtWork]:
        found = await prefect.runs_at_work(rotation, but=but)
        prefect.others = [HOLDER]
        return found

    monkeypatch.setattr(slot, "runs_at_work", list_and_clear)
    prefect.later[LOOK_AFTER_SECONDS + 60] = lambda: setattr(limit, "active_slots", 0)

    notes = await taken(prefect.slot(emergency=True))

    assert prefect.taken_back_at == []
    assert notes == []


async def test_a_run_that_waits_too_long_gives_up(prefect: FakePrefect) -> None:
    """The holder is running all the time, and keeps its slot."""
    prefect.add(SLOT, taken=True)
    prefect.others = [HOLDER]

    with pytest.raises(PlaceLostError, match="was still running after 300 seconds"):
        await taken(prefect.slot())

    assert WAIT_SECONDS <= prefect.seconds < WAIT_SECONDS + 10
    assert prefect.taken_back_at == []


@pytest.mark.parametrize("change", [{"active": False}, {"limit": 2}])
async def test_a_limit_that_is_changed_meanwhile_stops_no_run_any_more(
    prefect: FakePrefect, change: dict[str, Any]
) -> None:
    """A person deactivates the limit, or gives it a second slot."""
    limit = prefect.add(SLOT, taken=True)
    prefect.others = [HOLDER]
    prefect.later[10.0] = lambda: vars(limit).update(change)

    await taken(prefect.slot())

    assert prefect.seconds < 15


async def test_a_limit_that_is_deleted_meanwhile_is_made_again(prefect: FakePrefect) -> None:
    """The run continues as if the limit had never existed."""
    prefect.add(SLOT, taken=True)
    prefect.others = [HOLDER]
    prefect.later[10.0] = prefect.limits.clear

    await taken(prefect.slot())

    assert prefect.asked.count(f"make {SLOT}") == 1


async def test_a_request_without_an_answer_in_time_counts_as_a_refusal(prefect: FakePrefect) -> None:
    """If the slot was granted nevertheless, its lease expires within a minute."""
    prefect.add(SLOT, taken=False)
    prefect.failures = [AcquireConcurrencySlotTimeoutError()]

    await taken(prefect.slot())

    assert prefect.asked.count(f"take {SLOT}") == 2


async def test_an_error_of_the_server_is_no_refusal(prefect: FakePrefect) -> None:
    """The run fails and is tried again, instead of waiting for a slot that may be free."""
    failure = ConcurrencySlotAcquisitionError("500")
    failure.__cause__ = status_error(500)
    prefect.failures = [failure, failure]

    with pytest.raises(ServiceError, match=f"failed while taking the slot {SLOT}") as failed:
        await taken(prefect.slot())

    assert failed.value.retryable
    assert prefect.waits == []


async def test_other_runs_step_back_while_an_emergency_is_at_work(prefect: FakePrefect) -> None:
    """They release the slot at once, and start when the emergency has ended."""
    prefect.add(SLOT, taken=False)
    emergency = prefect.add(EMERGENCY, taken=True)
    prefect.others = [RunAtWork("0", is_emergency=True, waits_for="")]
    prefect.later[100.0] = lambda: setattr(emergency, "active_slots", 0)

    await taken(prefect.slot())

    assert set(prefect.waits) == {slot.STEP_BACK_SECONDS}
    assert 100 <= prefect.seconds <= 100 + slot.STEP_BACK_SECONDS
    assert prefect.taken_back_at == []
