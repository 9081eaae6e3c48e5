"""A rotation's slot: its name, who waits for it and for how long, and who reclaims it."""

from __future__ import annotations

import pkgutil
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import Flow

import flows
from blocks.errors import OtherRunError, ServiceError
from flows import slot
from flows.runs import open_run
from flows.slot import LOOK_AFTER_SECONDS, WAIT_SECONDS, Slot, emergency_slot_of, may_reclaim, slot_of
from tasks.model.rotation import is_slug
from tasks.world.ledgers import term_variable
from tasks.world.slots import OPENING_A_LEDGER, RunAtWork
from tests.flows.limits import FakeLimits, status_error

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


async def taken(made: Slot) -> list[str]:
    """Take and release a slot, and return the notes about repairs."""
    async with AsyncExitStack() as stack:
        await made.take(stack)
    return made.notes


EMERGENCY = emergency_slot_of("checkout")
HOLDER = RunAtWork("0", is_emergency=False, waits_for="")


async def test_a_slot_that_is_free_costs_one_request_and_a_look_for_an_emergency(limits: FakeLimits) -> None:
    """The run neither records that it waits, nor waits."""
    limits.add(SLOT, taken=False)

    await taken(limits.slot())

    assert limits.asked == [f"take {SLOT}", f"read {EMERGENCY}"]
    assert limits.waits == []


async def test_a_run_notes_that_it_waits_before_it_waits(limits: FakeLimits) -> None:
    """From its first refusal until it has the slot, other runs must not take it for the holder."""
    limit = limits.add(SLOT, taken=True)
    limits.others = [HOLDER]
    limits.later[3.0] = lambda: setattr(limit, "active_slots", 0)

    await taken(limits.slot())

    noted = [f"take {SLOT}", f"note {SLOT}"]
    assert limits.asked[:2] == noted
    assert limits.asked[-3:] == [f"take {SLOT}", "note ", f"read {EMERGENCY}"]
    assert set(limits.asked[2:-3]) == {f"read {SLOT}"}


async def test_waiting_runs_look_again_after_one_to_two_seconds_and_not_in_step(limits: FakeLimits) -> None:
    """A slot is soon taken again, and runs that a worker started together must not ask at the same times."""
    limit = limits.add(SLOT, taken=True)
    limits.others = [HOLDER]
    limits.later[30.0] = lambda: setattr(limit, "active_slots", 0)

    await taken(limits.slot())

    assert all(1 <= wait <= 2 for wait in limits.waits)
    assert len(set(limits.waits)) > 1


@pytest.mark.parametrize("waiting", [0, 1, 6])
@pytest.mark.parametrize("leaked", [[SLOT], [SLOT, EMERGENCY]], ids=["slot", "both"])
async def test_a_leaked_slot_stops_an_emergency_for_two_minutes_at_most(
    limits: FakeLimits, waiting: int, leaked: list[str]
) -> None:
    """This holds beside any number of waiting runs, and no slot is reclaimed before the emergency has waited."""
    for limit in (SLOT, EMERGENCY):
        limits.add(limit, taken=limit in leaked)
    limits.others = [RunAtWork(str(number), is_emergency=False, waits_for=SLOT) for number in range(waiting)]

    notes = await taken(limits.slot(emergency=True))

    assert [f"The slot {limit} was reclaimed" in " ".join(notes) for limit in leaked] == [True] * len(leaked)
    assert all(LOOK_AFTER_SECONDS <= at <= PROMISED_SECONDS for at in limits.taken_back_at)
    assert len(limits.taken_back_at) == len(leaked)


async def test_a_run_that_has_just_got_the_slot_keeps_it(limits: FakeLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment, a run that has the slot is still recorded as waiting."""
    limit = limits.add(SLOT, taken=True)
    limits.others = [RunAtWork("f" * 36, is_emergency=False, waits_for=SLOT)]

    async def list_and_clear(rotation: str, *, but: UUID) -> list[RunAtWork]:
        found = await limits.runs_at_work(rotation, but=but)
        limits.others = [HOLDER]
        return found

    monkeypatch.setattr(slot, "runs_at_work", list_and_clear)
    limits.later[LOOK_AFTER_SECONDS + 60] = lambda: setattr(limit, "active_slots", 0)

    notes = await taken(limits.slot(emergency=True))

    assert limits.taken_back_at == []
    assert notes == []


async def test_a_run_that_waits_too_long_gives_up(limits: FakeLimits) -> None:
    """The holder is running all the time, and keeps its slot."""
    limits.add(SLOT, taken=True)
    limits.others = [HOLDER]

    with pytest.raises(OtherRunError, match="was still running after 300 seconds"):
        await taken(limits.slot())

    assert WAIT_SECONDS <= limits.seconds < WAIT_SECONDS + 10
    assert limits.taken_back_at == []


@pytest.mark.parametrize("change", [{"active": False}, {"limit": 2}])
async def test_a_limit_that_is_changed_meanwhile_stops_no_run_any_more(
    limits: FakeLimits, change: dict[str, Any]
) -> None:
    """A person deactivates the limit, or gives it a second slot."""
    limit = limits.add(SLOT, taken=True)
    limits.others = [HOLDER]
    limits.later[10.0] = lambda: vars(limit).update(change)

    await taken(limits.slot())

    assert limits.seconds < 15


async def test_a_limit_that_is_deleted_meanwhile_is_made_again(limits: FakeLimits) -> None:
    """The run continues as if the limit had never existed."""
    limits.add(SLOT, taken=True)
    limits.others = [HOLDER]
    limits.later[10.0] = limits.limits.clear

    await taken(limits.slot())

    assert limits.asked.count(f"make {SLOT}") == 1


async def test_a_request_without_an_answer_in_time_counts_as_a_refusal(limits: FakeLimits) -> None:
    """If the slot was granted nevertheless, its lease expires within a minute."""
    limits.add(SLOT, taken=False)
    limits.failures = [TimeoutError()]

    await taken(limits.slot())

    assert limits.asked.count(f"take {SLOT}") == 2


async def test_an_error_of_the_server_is_no_refusal(limits: FakeLimits) -> None:
    """The run fails and is tried again, instead of waiting for a slot that may be free."""
    limits.failures = [status_error(500), status_error(500)]

    with pytest.raises(ServiceError, match=f"failed while taking the slot {SLOT}") as failed:
        await taken(limits.slot())

    assert failed.value.retryable
    assert limits.waits == []


async def test_one_error_of_the_server_costs_one_more_request(limits: FakeLimits) -> None:
    """An emergency does not wait a minute for its try because of it."""
    limits.add(SLOT, taken=False)
    limits.failures = [status_error(500)]

    await taken(limits.slot())

    assert limits.asked.count(f"take {SLOT}") == 2
    assert limits.waits == []


async def test_a_limit_without_a_slot_gets_its_one_slot_again(limits: FakeLimits) -> None:
    """A person has set it to zero, so the server refuses every request for a slot."""
    limits.add(SLOT, taken=False).limit = 0

    await taken(limits.slot())

    assert limits.limits[SLOT].limit == 1


async def test_other_runs_step_back_while_an_emergency_is_at_work(limits: FakeLimits) -> None:
    """They release the slot at once, and start when the emergency has ended."""
    limits.add(SLOT, taken=False)
    emergency = limits.add(EMERGENCY, taken=True)
    limits.others = [RunAtWork("0", is_emergency=True, waits_for="")]
    limits.later[100.0] = lambda: setattr(emergency, "active_slots", 0)

    await taken(limits.slot())

    assert set(limits.waits) == {slot.STEP_BACK_SECONDS}
    assert 100 <= limits.seconds <= 100 + slot.STEP_BACK_SECONDS
    assert limits.taken_back_at == []
