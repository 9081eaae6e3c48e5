"""Retry of a run that is no longer the last one."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from blocks.errors import DestinationError
from flows.rotate import follow_protocol
from sandbox.server import Fault
from tasks.steps import PLAIN
from tests.tasks.conftest import Life


async def test_a_retried_emergency_ends_what_it_was_to_end(life: Life) -> None:
    """It failed, and a scheduled run has rotated since, with an overlap for the stolen key: Retry ends that key."""
    await life.rotate()
    stolen = (await life.held()).hash
    run_id, first_started = uuid4(), life.time
    life.app.state.faults.add(Fault("before", "POST", "/keys$", status=403))
    await life.failure(life.rotate(run_id=run_id, emergency=True))
    life.app.state.faults.clear()
    life.later(minutes=5)
    await life.rotate()

    await life.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True)

    assert stolen not in life.openrouter.keys
    assert [key.hash for key in life.openrouter.live_keys()] == [(await life.held()).hash]


async def test_a_retry_of_a_finished_run_tells_of_the_one_that_is_not(life: Life) -> None:
    """Its own rotation is done; what another run has begun since is named, and not passed over in silence."""
    first, second = uuid4(), uuid4()
    await life.rotate(run_id=first)
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await life.failure(life.rotate(run_id=second))
    life.app.state.faults.clear()

    said = await life.rotate(run_id=first, attempt=2)

    assert f"the later rotation by run {second} is unfinished" in said


@pytest.mark.parametrize("emergency", [False, True])
@pytest.mark.parametrize("knows", [False, True], ids=["Prefect has forgotten that it completed", "Prefect knows"])
async def test_a_retry_of_a_run_that_completed_makes_no_key_and_ends_none_once_its_own_is_gone(
    life: Life, emergency: bool, knows: bool
) -> None:
    """Given a completed run whose key was superseded and revoked long ago, nothing is changed."""
    await life.rotate()
    run_id, first_started = uuid4(), life.time
    life.later(seconds=1)
    await life.rotate(run_id=run_id, emergency=emergency)
    life.later(days=1)
    await life.rotate()
    life.later(days=2)
    await life.retire()
    await life.rotate()
    before = life.everything()

    said = await life.rotate(
        run_id=run_id, first_started=first_started, attempt=2, emergency=emergency, completed=knows
    )

    why = "this run has completed before" if knows else "a later run has already rotated"
    assert said == f"Nothing to do: {why}. The key {(await life.held()).label} is the current one."
    assert life.everything() == before


async def test_a_retry_of_an_emergency_whose_last_revocation_failed_ends_no_key_before_its_time(life: Life) -> None:
    """Given an emergency that published and then failed, later runs did its work: its Retry does nothing."""
    await life.rotate()
    run_id, first_started = uuid4(), life.time
    life.later(seconds=1)
    life.app.state.faults.add(Fault("before", "DELETE", "/keys/", status=403))
    await life.failure(life.rotate(run_id=run_id, emergency=True))
    life.app.state.faults.clear()
    for _ in range(3):
        life.later(days=2)
        await life.rotate()
    before = life.everything()

    said = await life.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True)

    assert said.startswith("Nothing to do: a later run has already rotated.")
    assert life.everything() == before


async def test_a_retry_of_a_completed_run_makes_no_key_after_the_clock_was_set_back(life: Life) -> None:
    """Given that the moments in the ledger say nothing any more, Prefect's own record of the run decides."""
    run_id, first_started = uuid4(), life.time
    await life.rotate(run_id=run_id)
    life.later(days=-3)
    await life.rotate()
    life.later(days=2)
    await life.retire()
    before = life.everything()

    said = await life.rotate(run_id=run_id, first_started=first_started, attempt=2, completed=True)

    assert said.startswith("Nothing to do: this run has completed before.")
    assert life.everything() == before


async def test_a_retry_of_a_completed_run_says_that_there_is_no_key_any_more(life: Life) -> None:
    """Given a rotation whose ledger is gone, a run that has completed does not begin it anew."""
    run_id = uuid4()
    await life.rotate(run_id=run_id)
    life.store.value = None
    before = life.everything()

    said = await life.rotate(run_id=run_id, attempt=2, completed=True)

    assert said == (
        "Nothing to do: this run has completed before. There is no current key now; to make one, start a new run."
    )
    assert life.everything() == before


async def test_a_retry_does_not_say_that_a_key_is_live_where_it_is_not(life: Life) -> None:
    """Given that somebody has put another value into the destination, the Retry names it."""
    run_id = uuid4()
    await life.rotate(run_id=run_id)
    label = (await life.held()).label
    await life.block.awrite_secret(b"by hand")

    said = await life.rotate(run_id=run_id, attempt=2, completed=True)

    assert said == (
        f"Already rotated: the key {label} is the current one, but vault-secret/checkout does not hold it: start a new "
        "run; no superseded keys."
    )


@pytest.mark.parametrize("knows", [False, True], ids=["Prefect has forgotten that it completed", "Prefect knows"])
async def test_a_retry_of_an_emergency_ends_no_key_that_was_superseded_after_it(life: Life, knows: bool) -> None:
    """Given that the emergency's key was restored, the key that it replaced keeps its overlap."""
    run_id, first_started = uuid4(), life.time
    await life.rotate()
    await life.rotate(run_id=run_id, emergency=True)
    life.later(days=1)
    await life.rotate()
    replaced = await life.held()
    await life.restore()
    before = life.ledger.superseded

    said = await life.rotate(run_id=run_id, first_started=first_started, attempt=2, emergency=True, completed=knows)

    assert said.startswith(f"Already rotated: the key {(await life.held()).label} is the current one")
    assert life.openrouter.is_live(replaced.secret)
    assert life.ledger.superseded == before


@pytest.mark.parametrize("emergency", [False, True])
async def test_a_retry_of_a_completed_run_says_where_its_key_is_not(life: Life, emergency: bool) -> None:
    """Given a destination that somebody has changed since, no Retry says that the key is live there."""
    run_id = uuid4()
    await life.rotate(run_id=run_id, emergency=emergency)
    await life.block.awrite_secret(b"by hand")
    keys = set(life.openrouter.keys)

    try:
        said = await life.rotate(run_id=run_id, attempt=2, emergency=emergency, completed=True)
    except DestinationError as error:
        said = str(error)

    assert "vault-secret/checkout" in said
    assert "live at" not in said
    assert set(life.openrouter.keys) == keys


async def test_a_run_that_has_nothing_to_do_says_that_it_was_only_for_itself(life: Life) -> None:
    """Given a Retry of a completed run, or a scheduled one that comes too early, what others have begun is not done."""
    rotated = life.open()
    await follow_protocol(rotated, life.rotation, PLAIN)
    again = life.open(run_id=rotated.identity.id, attempt=2)
    early = life.open(scheduled_for=life.time - timedelta(hours=1))
    completed = life.open(attempt=2, completed=True)

    for run in (again, early, completed):
        await follow_protocol(run, life.rotation, PLAIN)

    assert [run.only_for_itself for run in (rotated, again, early, completed)] == [False, True, True, True]
