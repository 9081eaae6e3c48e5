"""A slot without a holder stops no run."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

from flows import rotate, slot
from flows.slot import Slot, emergency_slot_of, slot_of
from tasks.world.slots import IN_MEMORY, LEASES_IN_MEMORY, slot_warnings
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the group of these tests


async def leak(limit: str) -> None:
    """Leave a slot taken without a lease, as after the restart of a server with leases in memory."""
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(limit, 1)
        await client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=1))


@pytest.mark.parametrize("limit_of", [slot_of, emergency_slot_of])
async def test_a_slot_whose_holder_is_not_at_work_is_taken_back(
    services: Services, limit_of: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leaked slot, even the emergency's, delays a run; then the run reclaims it and says so."""
    monkeypatch.setattr(slot, "LOOK_AFTER_SECONDS", 0.5)
    rotation = await services.prepare(services.rotation())
    limit = limit_of(rotation.name)  # type: ignore[operator]
    await leak(limit)

    state = await rotate(rotation, return_state=True)
    page = await Artifact.aget(f"rotation-{rotation.name}")

    assert state.is_completed()
    assert page is not None
    assert f"The slot {limit} was reclaimed: the run that held it is no longer running." in str(page.data)


async def test_runs_that_wait_for_a_leaked_slot_do_not_keep_each_other_waiting(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two runs of which neither has the slot, one reclaims it, and both get their turn."""
    monkeypatch.setattr(slot, "LOOK_AFTER_SECONDS", 2)
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/two-waiting"]))
    await leak(slot_of(rotation.name))

    states = await asyncio.gather(
        rotate(rotation, emergency=True, return_state=True), rotate(rotation, return_state=True)
    )

    assert [state.is_completed() for state in states] == [True, True], [state.message for state in states]


async def test_four_runs_of_one_process_get_a_leaked_slot_back_in_time(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run waits for the others before it may check for a holder: two minutes at most, as for a single run.

    In this test, all times are a third of the real ones.
    """
    monkeypatch.setattr(slot, "LOOK_AFTER_SECONDS", slot.LOOK_AFTER_SECONDS / 3)
    promised = 120.0 / 3
    began, taken_back = [], []
    take, take_back = Slot.take, Slot._take_back

    async def begin(self: Slot, stack: AsyncExitStack) -> None:
        began.append(time.monotonic())
        await take(self, stack)

    async def note(self: Slot, limit: str) -> None:
        taken_back.append(time.monotonic())
        await take_back(self, limit)

    monkeypatch.setattr(Slot, "take", begin)
    monkeypatch.setattr(Slot, "_take_back", note)
    rotation = await services.prepare(services.rotation())
    await leak(slot_of(rotation.name))

    states = await asyncio.gather(*(rotate(rotation, return_state=True) for _ in range(4)))

    assert [state.is_completed() for state in states] == [True] * 4, [state.message for state in states]
    assert len(taken_back) == 1
    assert taken_back[0] - max(began) < promised


async def test_an_emergency_takes_a_leaked_slot_back(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both slots may be leaked, and the emergency starts nevertheless."""
    monkeypatch.setattr(slot, "LOOK_AFTER_SECONDS", 0.5)
    rotation = await services.prepare(services.rotation())
    await rotate(rotation, return_state=True)
    for limit in (slot_of(rotation.name), emergency_slot_of(rotation.name)):
        await leak(limit)

    assert (await rotate(rotation, emergency=True, return_state=True)).is_completed()


async def test_a_limit_that_is_switched_off_stops_no_run(services: Services) -> None:
    """An inactive limit grants every slot; only the ledger separates the runs then."""
    rotation = await services.prepare(services.rotation())
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(slot_of(rotation.name), 1)
        await client.update_global_concurrency_limit(slot_of(rotation.name), GlobalConcurrencyLimitUpdate(active=False))

    assert (await rotate(rotation, return_state=True)).is_completed()
    assert (await rotate(rotation, return_state=True)).is_completed()


async def test_the_check_warns_of_a_limit_that_is_switched_off(services: Services) -> None:
    """Given a real server, the daily check names the limit, and completes, because nothing is broken."""
    rotation = services.rotation()
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(slot_of(rotation.name), 1)
        await client.update_global_concurrency_limit(slot_of(rotation.name), GlobalConcurrencyLimitUpdate(active=False))

    warnings = await slot_warnings()

    async with get_client() as client:
        settings = (await client.request("GET", "/admin/settings")).json()
        await client.delete_global_concurrency_limit_by_name(slot_of(rotation.name))
    assert slot_of(rotation.name) in " ".join(warnings)
    assert LEASES_IN_MEMORY not in warnings
    assert settings["server"]["concurrency"]["lease_storage"] != IN_MEMORY
