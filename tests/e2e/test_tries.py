"""A failure that passes by itself is retried by a scheduled run of the same deployment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from prefect import State, get_client
from prefect.client.orchestration import PrefectClient
from prefect.states import Cancelled, Scheduled

import tasks.model.tries
from blocks.errors import ServiceError
from flows import audit, retire, rotate
from sandbox.server import Fault
from sandbox.stack import POOL, Stack
from tasks.model.events import Event
from tasks.model.rotation import Rotation
from tasks.model.tries import NUMBER, TRIES_AGAIN
from tests.by_hand import delete_ledger, end_overlap, ledger_of
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import attempt, begin, begin_rotation, deploy, deploy_to, ended, events, retry, start
from tests.e2e.trying import NOWHERE, come, fail, pending, scheduled_run, tries_of, wait_for

pytestmark = with_processes


@pytest.fixture(autouse=True)
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a run in this process from waiting for a service that is down."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)


@pytest.fixture
async def rotation(services: Services) -> Rotation:
    """A rotation with a key."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=7)))
    assert (await attempt(await begin_rotation(rotation))).is_completed()
    return rotation


async def test_a_failure_that_passes_is_tried_again_by_a_scheduled_run(services: Services, rotation: Rotation) -> None:
    """The message gives the time; the try is visible, and completes the rotation of the failed run."""
    run_id = await begin_rotation(rotation)

    failed = await fail(services, run_id)

    [planned] = await pending(rotation.name)
    assert (failed.type.value, failed.name) == ("FAILED", TRIES_AGAIN)
    assert f"at {planned.expected_start_time:%Y-%m-%d %H:%M} UTC (try 1)" in str(failed.message)
    assert planned.name == f"rotate {rotation.name}, try 1"
    assert (await come(planned.id)).is_completed()
    current = (await ledger_of(rotation.name)).current
    assert current is not None
    assert current.made_by == run_id
    assert len(services.openrouter.created) == 2
    assert await pending(rotation.name) == []


async def test_what_needs_a_person_is_not_tried_again(services: Services, rotation: Rotation) -> None:
    """A rejected management key is reported at once."""
    services.openrouter.accounts[0].management_keys.clear()

    failed = await attempt(await begin_rotation(rotation))

    assert failed.name == "Failed"
    assert "tried again" not in str(failed.message)
    assert await tries_of(rotation.name) == []
    assert len(await events(rotation, Event.ROTATION_NEEDS_PERSON)) == 1


async def test_the_third_failed_try_is_told_and_so_is_the_end(services: Services, rotation: Rotation) -> None:
    """Nobody is notified before, and whoever was notified learns when it is over."""
    run_id, waits = await begin_rotation(rotation), []
    names = [(await fail(services, run_id)).name]
    for _ in range(3):
        [planned] = await pending(rotation.name)
        waits.append(wait_for(planned))
        told = await fail(services, planned.id)
        names.append(told.name)

    [planned] = await pending(rotation.name)
    healed = await come(planned.id)

    assert names == [TRIES_AGAIN] * 3 + ["Failed"]
    assert waits == sorted(waits)
    assert "3 tries have failed already. The run is tried again automatically at" in str(told.message)
    assert healed.is_completed()
    [recovered] = await events(rotation, Event.ROTATION_RECOVERED)
    assert recovered["payload"]["sentence"] == healed.message
    assert len(await events(rotation, Event.ROTATION_NEEDS_PERSON)) == 1


async def test_a_failure_that_nobody_heard_of_ends_without_a_word(services: Services, rotation: Rotation) -> None:
    """Whoever was not notified of a failure must not be notified of its end."""
    run_id = await begin_rotation(rotation)
    await fail(services, run_id)
    [planned] = await pending(rotation.name)

    assert (await come(planned.id)).is_completed()
    assert (await attempt(await begin_rotation(rotation))).is_completed()

    told: list[str] = []
    # The last run's events come after all that could have been emitted before.
    while told.count(Event.ROTATION_COMPLETED.value) < 3:
        told = [each["event"] for each in await events(rotation, *Event)]
    assert Event.ROTATION_FAILED.value in told
    assert set(told) & {Event.ROTATION_NEEDS_PERSON.value, Event.ROTATION_RECOVERED.value} == set()


@pytest.mark.parametrize("by", ["Retry", "a new run"])
async def test_a_person_who_repairs_it_is_told_that_it_is_over(services: Services, rotation: Rotation, by: str) -> None:
    """After a failure that needed a person, a success by Retry or by a new run is notified."""
    keys = set(services.openrouter.accounts[0].management_keys)
    services.openrouter.accounts[0].management_keys.clear()
    run_id = await begin_rotation(rotation)
    await attempt(run_id)
    services.openrouter.accounts[0].management_keys.update(keys)
    if by == "Retry":
        await retry(run_id)

    assert (await attempt(run_id if by == "Retry" else await begin_rotation(rotation))).is_completed()

    assert len(await events(rotation, Event.ROTATION_RECOVERED)) == 1


async def test_a_retry_by_a_person_ends_the_pending_try(services: Services, rotation: Rotation) -> None:
    """The Retry has done the work of the try."""
    run_id = await begin_rotation(rotation)
    await fail(services, run_id)
    await retry(run_id)

    assert (await attempt(run_id)).is_completed()

    assert await tries_of(rotation.name) == []
    assert len(services.openrouter.created) == 2


async def test_a_retry_that_fails_too_leaves_one_pending_try(services: Services, rotation: Rotation) -> None:
    """However often a person presses Retry, there is one try; a separate run of that person has its own."""
    run_id = await begin_rotation(rotation)
    messages = [str((await fail(services, run_id)).message)]
    await retry(run_id)
    messages.append(str((await fail(services, run_id)).message))
    [planned] = await pending(rotation.name)
    await fail(services, await begin_rotation(rotation))

    assert all(f"{planned.expected_start_time:%H:%M} UTC (try 1)" in message for message in messages)
    assert len(await pending(rotation.name)) == 2


async def test_a_retry_that_finds_nothing_to_do_leaves_the_try_of_another_run(
    services: Services, rotation: Rotation
) -> None:
    """The Retry of a completed run has not done what a later run failed to do."""
    completed = await begin_rotation(rotation)
    assert (await attempt(completed)).is_completed()
    failed = await begin_rotation(rotation)
    await fail(services, failed)
    await retry(completed)

    assert str((await attempt(completed)).message).startswith("Already rotated")

    [planned] = await pending(rotation.name)
    assert (await come(planned.id)).is_completed()
    current = (await ledger_of(rotation.name)).current
    assert current is not None
    assert current.made_by == failed


async def test_a_cancelled_try_leaves_the_failure_to_a_person(services: Services, rotation: Rotation) -> None:
    """A person who cancels a try wants no other one; only a failed Retry schedules the next."""
    run_id = await begin_rotation(rotation)
    await fail(services, run_id)
    [planned] = await pending(rotation.name)
    async with get_client() as client:
        await client.set_flow_run_state(planned.id, Cancelled())
    assert await pending(rotation.name) == []

    await retry(run_id)
    await fail(services, run_id)

    assert len(await pending(rotation.name)) == 1


async def test_a_try_that_comes_after_another_rotation_makes_no_key(services: Services, rotation: Rotation) -> None:
    """The try finishes the failed run, which has nothing left to do."""
    await fail(services, await begin_rotation(rotation))
    [planned] = await pending(rotation.name)
    with mock.patch.object(PrefectClient, "delete_flow_run", side_effect=TimeoutError):
        assert (await attempt(await begin_rotation(rotation))).is_completed()

    late = await come(planned.id)

    assert str(late.message).startswith("Nothing to do: a later run has already rotated.")
    assert len(services.openrouter.created) == 2


async def test_a_try_that_comes_after_the_retry_makes_no_key(services: Services, rotation: Rotation) -> None:
    """This holds even if the ledger was deleted and only Prefect knows that the run has completed."""
    run_id = await begin_rotation(rotation)
    await fail(services, run_id)
    [planned] = await pending(rotation.name)
    await retry(run_id)
    with mock.patch.object(PrefectClient, "delete_flow_run", side_effect=TimeoutError):
        assert (await attempt(run_id)).is_completed()

    await delete_ledger(rotation.name)
    late = await come(planned.id)

    assert str(late.message).startswith("Nothing to do: this run has completed before.")
    assert len(services.openrouter.created) == 2


async def test_an_emergency_is_tried_again_as_an_emergency_and_sooner(services: Services, rotation: Rotation) -> None:
    """A successful ordinary rotation does not end this try, because older keys are still alive."""
    run_id = await begin(rotate, {"rotation": rotation.model_dump(mode="json"), "emergency": True})
    await fail(services, run_id)
    [planned] = await pending(rotation.name)
    assert wait_for(planned) < timedelta(minutes=2)
    assert (await attempt(await begin_rotation(rotation))).is_completed()
    assert len(services.openrouter.live_keys()) == 2

    assert (await come(planned.id)).is_completed()

    assert planned.parameters["emergency"] is True
    assert len(services.openrouter.live_keys()) == 1


async def test_an_emergency_that_succeeds_ends_the_try_of_an_ordinary_run(
    services: Services, rotation: Rotation
) -> None:
    """The emergency has done the work of that run."""
    await fail(services, await begin_rotation(rotation))

    state = await attempt(await begin(rotate, {"rotation": rotation.model_dump(mode="json"), "emergency": True}))

    assert state.is_completed()
    assert await tries_of(rotation.name) == []


async def test_a_regular_run_that_comes_earlier_takes_the_place_of_a_scheduled_ones_try(
    services: Services, rotation: Rotation
) -> None:
    """No try is scheduled; if the regular run fails, it counts as a try."""
    first, soon = await scheduled_run(rotation), datetime.now(UTC) + timedelta(minutes=3)
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"rotate/{rotation.name}")
        regular = await client.create_flow_run_from_deployment(deployment.id, state=Scheduled(scheduled_time=soon))

    message = str((await fail(services, first)).message)

    assert f"The run is tried again automatically at {soon:%Y-%m-%d %H:%M} UTC (try 1)." in message
    assert await tries_of(rotation.name) == []
    assert "(try 2)" in str((await fail(services, regular.id)).message)
    [planned] = await pending(rotation.name)
    assert planned.labels[NUMBER] == 2


async def test_a_persons_order_outlives_a_regular_run_that_finds_the_key_too_young(
    services: Services, rotation: Rotation
) -> None:
    """Its own try rotates the key; the end of the failure is notified by that try, and not by the regular run."""
    rotation = rotation.model_copy(update={"minimum_age": timedelta(days=3)})
    regular = await scheduled_run(rotation)
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"rotate/{rotation.name}")
        soon: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(seconds=30))
        await client.set_flow_run_state(regular, soon, force=True)
        ordered = (await client.create_flow_run_from_deployment(deployment.id)).id
    await fail(services, ordered)
    for _ in range(3):
        [planned] = await pending(rotation.name)
        await fail(services, planned.id)

    assert "younger than its minimum age" in str((await come(regular)).message)

    [planned] = await pending(rotation.name)
    healed = await come(planned.id)
    [recovered] = await events(rotation, Event.ROTATION_RECOVERED)
    current = (await ledger_of(rotation.name)).current
    assert current is not None
    assert current.made_by == ordered
    assert recovered["payload"]["sentence"] == healed.message


async def test_a_try_uses_the_settings_that_its_deployment_has_by_then(services: Services, rotation: Rotation) -> None:
    """Given that a person has changed the destination meanwhile, the key is published there."""
    await fail(services, await begin_deployed(rotation))
    [planned] = await pending(rotation.name)
    moved = await services.prepare(rotation.model_copy(update={"destinations": [f"secret/{rotation.name}-moved"]}))
    await deploy(moved)

    assert (await come(planned.id)).is_completed()

    current = (await ledger_of(rotation.name)).current
    assert current is not None
    assert current.destinations == (f"secret/{rotation.name}-moved",)


async def test_a_try_that_cannot_be_scheduled_is_not_promised(services: Services, rotation: Rotation) -> None:
    """The person on call is notified at once."""
    refusal = ServiceError("Prefect's API failed.", retryable=False)
    with mock.patch.object(PrefectClient, "create_flow_run_from_deployment", side_effect=refusal):
        run_id = await begin_deployed(rotation)
        failed = await fail(services, run_id)

    assert failed.name == "Failed"
    assert "tried again" not in str(failed.message)


async def begin_deployed(rotation: Rotation) -> UUID:
    """Create a run of a rotation's own deployment, without the client's method, which a test may have replaced."""
    await deploy(rotation)
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"rotate/{rotation.name}")
        made = await client.request(
            "POST", "/deployments/{id}/create_flow_run", path_params={"id": deployment.id}, json={}
        )
    return UUID(made.json()["id"])


async def test_a_run_without_a_deployment_promises_nothing(services: Services, rotation: Rotation) -> None:
    """Without a deployment, no try can be scheduled."""
    await services.connect(NOWHERE)

    failed = await rotate(rotation, return_state=True)

    assert failed.name == "Failed"
    assert await tries_of(rotation.name) == []


async def test_a_retirement_is_tried_again_too(services: Services) -> None:
    """Its try has the tag of the rotation, and revokes what was due."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(hours=1)))
    for _ in range(2):
        assert (await attempt(await begin_rotation(rotation))).is_completed()
    await end_overlap(rotation.name)

    assert (await fail(services, await begin(retire, {"rotation": rotation.name}))).name == TRIES_AGAIN

    [planned] = await pending(rotation.name)
    assert planned.name == f"retire {rotation.name}, try 1"
    assert (await come(planned.id)).is_completed()
    assert len(services.openrouter.live_keys()) == 1


async def test_an_audit_is_tried_again_too(services: Services) -> None:
    """A run without a rotation gets a try, too; a finding needs a person, and leads to no try."""
    run_id = await begin(audit, {"connection": services.connection})

    assert (await fail(services, run_id)).name == TRIES_AGAIN

    services.openrouter.accounts[0].management_keys.clear()
    assert (await attempt(await begin(audit, {"connection": services.connection}))).name == "Failed"


async def test_a_rotation_heals_by_itself_once_its_vault_is_back(
    services: Services, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vault is down at the scheduled time; a worker takes the try some seconds later, without help from a person."""
    monkeypatch.setattr(tasks.model.tries, "WAITS", (timedelta(seconds=4),))
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/restarting"]))
    await deploy_to(POOL)
    first = await start(rotation, deployment_name=POOL)
    services.vault_app.state.faults.add(Fault("before", "GET", "/", status=503))

    failed = await attempt(first)

    [planned] = await tries_of(rotation.name)
    services.vault_app.state.faults.clear()
    worker = stack.start_worker()
    try:
        healed = await ended(planned.id)
    finally:
        worker.stop()
    assert failed.name == TRIES_AGAIN
    assert healed.state_name == "Completed", healed.state
    current = (await ledger_of(rotation.name)).current
    assert current is not None
    assert current.made_by == first
