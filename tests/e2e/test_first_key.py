"""The first key of a rotation that the form has added: created once, waited for, and repeated on request."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect import State, get_client
from prefect.states import Completed, Failed, Running, Scheduled

from flows import deployments
from tests.e2e.conftest import Services, without_worker
from tests.e2e.form import add, added, deployed, form, runs_of, shown

pytestmark = without_worker


async def test_with_one_busy_slot_the_first_key_is_scheduled_once(services: Services) -> None:
    """Without a free worker, the run is reported but not waited for, and a second submission schedules no other."""
    fields = await form(services, make_key_now=True)

    first = await add(fields)
    again = await add(fields)

    made = await deployed(fields["rotation_name"])
    assert made is not None
    [run] = await runs_of(made)
    assert "is created as soon as a worker is free" in str(first.message)
    assert again.is_completed()
    assert run.state is not None
    assert run.state.is_scheduled()
    assert str(run.id) in await shown(fields["rotation_name"])


async def test_a_rotation_called_first_key_gets_one(services: Services) -> None:
    """Its scheduled runs have its name as a tag, and none of them makes the first key now."""
    fields = await form(services, rotation_name="first-key")
    made = await added(fields)
    in_a_month: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=30))
    async with get_client() as client:
        scheduled = await client.create_flow_run_from_deployment(made.id, state=in_a_month, tags=made.tags)

    await add({**fields, "make_key_now": True})

    [run] = [run for run in await runs_of(made) if run.id != scheduled.id]
    assert run.name == "first key of first-key"


async def test_a_first_key_that_failed_is_tried_again_by_the_same_form(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form fails with the message of the first key's run; a new submission starts one more run."""
    monkeypatch.setattr(deployments, "STARTS_WITHIN_SECONDS", 60.0)
    fields = await form(services, make_key_now=True)
    sentence = "publish failed: Vault is sealed. Retry is safe."

    failed, _ = await asyncio.gather(add(fields), conclude_next_run(fields["rotation_name"], Failed(message=sentence)))
    healed, _ = await asyncio.gather(add(fields), conclude_next_run(fields["rotation_name"], Completed()))

    made = await deployed(fields["rotation_name"])
    assert made is not None
    assert failed.is_failed()
    assert sentence in str(failed.message)
    assert str(healed.message).endswith("Its first key is published.")
    assert len(await runs_of(made)) == 2


async def test_a_first_key_that_takes_long_is_not_waited_for_without_end(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging first run does not block the form's run, which reports it as still running."""
    monkeypatch.setattr(deployments, "STARTS_WITHIN_SECONDS", 60.0)
    monkeypatch.setattr(deployments, "ENDS_WITHIN_SECONDS", 0.0)
    fields = await form(services, make_key_now=True)

    state, _ = await asyncio.gather(add(fields), conclude_next_run(fields["rotation_name"], Running()))

    assert state.is_completed(), state.message
    assert str(state.message).endswith("The run that creates its first key is still running.")


async def conclude_next_run(name: str, state: State[Any]) -> None:
    """Put the next run of a rotation's deployment into a state, like a worker."""
    while True:
        made = await deployed(name)
        waiting = [run for run in await runs_of(made) if run.state_name == "Scheduled"] if made else []
        if waiting:
            async with get_client() as client:
                await client.set_flow_run_state(waiting[0].id, state, force=True)
            return
        await asyncio.sleep(0.1)
