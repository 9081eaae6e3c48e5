"""The flow in this process, against a real Prefect server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import State, get_client
from prefect.artifacts import Artifact
from prefect.blocks.system import Secret
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.sorting import FlowRunSort

from flows import retire, rotate
from sandbox.server import Fault
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.model.keys import read_marker
from tasks.model.ledger import Ledger
from tasks.model.rotation import Rotation
from tests.by_hand import end_overlap, ledger_of
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.driver import attempt, begin_rotation, deploy, retirements_of, retry
from tests.e2e.processes import check_converged, check_one_key


async def run(rotation: Rotation | dict[str, Any], **how: Any) -> State[Any]:
    """Run the flow, and return its final state."""
    return await rotate(rotation, return_state=True, **how)


async def held(rotation: Rotation) -> str:
    """Return what the rotation's Prefect secret holds."""
    secret: Any = await Secret.aload(rotation.destinations[0].partition("/")[2])
    return str(secret.value.get_secret_value())


async def ledger(rotation: Rotation) -> Ledger:
    """Return the rotation's ledger."""
    return await ledger_of(rotation.name)


async def test_a_rotation_publishes_a_working_key_and_revokes_the_old_one(services: Services) -> None:
    """After two rotations without an overlap, the secret holds the only live key, which the second run made."""
    rotation = await services.prepare(services.rotation())
    await run(rotation)
    first = await held(rotation)

    state = await run(rotation)

    second = await held(rotation)
    assert state.is_completed()
    assert first != second
    await check_one_key(services, rotation)


async def test_the_keys_name_leads_to_the_flow_run(services: Services) -> None:
    """Whoever sees the key at OpenRouter can find the flow run that made it."""
    rotation = await services.prepare(services.rotation())
    await run(rotation)

    mark = read_marker(services.openrouter.live_keys()[0].name)

    assert mark is not None
    async with get_client() as client:
        assert (await client.read_flow_run(mark[1])).state_name == "Completed"


async def test_an_overlap_ends_with_a_scheduled_run(services: Services) -> None:
    """During an overlap both keys work, and a retirement is scheduled for its end, visible and cancellable."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(hours=6)))
    await run(rotation)
    await run(rotation)

    scheduled = await retirements_of(rotation)
    due = (await ledger(rotation)).superseded[0].revoke_at
    assert [(r.state_name, r.next_scheduled_start_time) for r in scheduled] == [("Scheduled", due)]
    assert len(services.openrouter.live_keys()) == 2


async def test_retire_revokes_what_is_due_and_nothing_else(services: Services) -> None:
    """A retirement before the end of the overlap does nothing; at its end, it revokes the superseded key."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(hours=6)))
    await run(rotation)
    await run(rotation)
    early = await retire(rotation.name, return_state=True)
    alive = len(services.openrouter.live_keys())
    await end_overlap(rotation.name)

    late = await retire(rotation.name, return_state=True)

    assert alive == 2
    assert "Nothing was due" in str(early.message)
    assert "Revoked" in str(late.message)
    await check_one_key(services, rotation)


async def test_an_emergency_revokes_every_older_key_at_once(services: Services) -> None:
    """In an emergency, keys in their overlap are revoked as soon as the new one is published."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=7)))
    await run(rotation)
    await run(rotation)

    state = await run(rotation, emergency=True)

    assert state.is_completed()
    await check_one_key(services, rotation)


async def test_a_foreign_key_is_replaced_and_not_revoked(services: Services) -> None:
    """The destination's former content is reported, and never changed at OpenRouter."""
    rotation = await services.prepare(services.rotation())
    foreign = services.openrouter.add_key(services.openrouter.accounts[0], {"name": "made by hand"})
    await Secret(value=foreign.secret).asave(rotation.name, overwrite=True)

    await run(rotation)

    artifact = await Artifact.aget(f"rotation-{rotation.name}")
    assert services.openrouter.is_live(foreign.secret)
    assert artifact is not None
    assert "held a secret that this rotation did not make" in str(artifact.data)


async def test_a_key_that_is_late_is_waited_for(services: Services) -> None:
    """A new key that OpenRouter rejects with 401 at first is verified as soon as it works."""
    services.openrouter.refusals = 2
    rotation = await services.prepare(services.rotation())

    assert (await run(rotation)).is_completed()


async def test_a_key_with_other_settings_is_not_published(services: Services) -> None:
    """If OpenRouter created a key with other settings, the run fails, and the old key stays published."""
    rotation = await services.prepare(services.rotation())
    await run(rotation)
    before = await held(rotation)
    add_key = services.openrouter.add_key
    services.openrouter.add_key = lambda account, body: add_key(account, {**body, "limit": 1})  # type: ignore[method-assign]

    state = await run(rotation)

    assert "with other settings than asked for: limit" in str(state.message)
    assert await held(rotation) == before
    assert services.openrouter.is_live(before)


async def test_a_lost_answer_to_the_create_leaves_no_orphan(services: Services) -> None:
    """A key whose create got no answer is found by its marker and deleted in the same run."""
    rotation = await services.prepare(services.rotation())
    services.openrouter_app.state.faults.add(Fault("after", "POST", "/keys$", times=1))

    state = await run(rotation)

    assert state.is_completed()
    assert len(services.openrouter.created) == 2
    await check_one_key(services, rotation)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"connection": "unknown"}, "openrouter-credentials/unknown does not exist"),
        ({"destinations": ["secret/unknown"]}, "secret/unknown does not exist"),
        ({"destinations": ["openrouter-credentials/openrouter"]}, "is not a secret block"),
        ({"destinations": ["nonsense/unknown"]}, "nonsense/unknown does not exist"),
        ({"name": "Not A Slug"}, "rotation.name"),
    ],
)
async def test_bad_input_makes_nothing(services: Services, changes: dict[str, Any], sentence: str) -> None:
    """A rotation that names something missing fails with one sentence, before a key is created."""
    parameters = {**services.rotation().model_dump(mode="json"), **changes}

    state = await run(parameters)

    assert state.is_failed()
    assert sentence in str(state.message)
    assert "Traceback" not in str(state.message)
    assert services.openrouter.created == []


async def test_a_failed_run_says_what_failed_what_is_live_and_that_retry_is_safe(services: Services) -> None:
    """The person on call reads all of it in the state's message."""
    rotation = await services.prepare(services.rotation())
    await run(rotation)
    live = services.openrouter.live_keys()[0].label
    services.openrouter.accounts[0].management_keys.clear()

    state = await run(rotation)

    assert state.is_failed()
    assert str(state.message).startswith("Could not create a key: ")
    assert f"The key {live} is live" in str(state.message)
    assert "Retry is safe" in str(state.message)


async def test_the_artifact_shows_the_rotations_state(services: Services) -> None:
    """After each run, an artifact shows current and superseded keys by label, the destinations and the next step."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(hours=6)))
    await run(rotation)
    await run(rotation)

    artifact = await Artifact.aget(f"rotation-{rotation.name}")

    assert artifact is not None
    shown = str(artifact.data)
    now = await ledger(rotation)
    assert now.current is not None
    for part in (now.current.label, now.superseded[0].label, rotation.destinations[0], "Next step"):
        assert part in shown


async def test_two_runs_started_together_take_turns(services: Services) -> None:
    """Two simultaneous runs both complete, one after the other, and leave one key."""
    rotation = await services.prepare(services.rotation())

    states = await asyncio.gather(run(rotation), run(rotation))

    assert [state.name for state in states] == ["Completed", "Completed"]
    assert len(services.openrouter.created) == 2
    await check_one_key(services, rotation)


@pytest.mark.parametrize("how", ["sealed", "token ended"])
async def test_a_vault_that_cannot_be_used_costs_no_key(services: Services, how: str) -> None:
    """With Vault sealed, or its token expired, a run creates nothing; once that is repaired, the next run completes."""
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/unusable"]))
    await run(rotation)
    made = list(services.openrouter.created)
    token = services.vault.tokens[ROOT_TOKEN]
    if how == "sealed":
        services.vault.sealed = True
    else:
        del services.vault.tokens[ROOT_TOKEN]

    state = await run(rotation)
    failed_with = list(services.openrouter.created)
    services.vault.sealed = False
    services.vault.tokens[ROOT_TOKEN] = token
    healed = await run(rotation)

    assert state.is_failed()
    assert "Retry is safe" in str(state.message)
    assert failed_with == made
    assert healed.is_completed()
    assert len(services.openrouter.live_keys()) == 1


async def test_three_destinations_one_of_them_broken(services: Services) -> None:
    """With one failing destination nothing is revoked, and the run says so; Retry completes the same rotation."""
    destinations = ["secret/three", "vault-secret/three", "infisical-secret/three"]
    rotation = await services.prepare(services.rotation(destinations=destinations))
    await run(rotation)
    old = services.openrouter.live_keys()[0]
    services.vault_app.state.faults.add(Fault(method="POST", path="/data/", status=503, body='{"errors":["down"]}'))
    run_id = await begin_rotation(rotation)

    failed = await attempt(run_id)
    alive_after_failure = services.openrouter.is_live(old.secret)
    services.vault_app.state.faults.clear()
    await retry(run_id)
    healed = await attempt(run_id)

    assert failed.is_failed()
    assert "Could not publish the new key: Vault at" in str(failed.message)
    assert "(block vault-secret/three)" in str(failed.message)
    assert "Retry is safe" in str(failed.message)
    assert alive_after_failure
    assert healed.is_completed()
    assert len(services.openrouter.created) == 2
    await end_overlap(rotation.name)
    await retire(rotation.name, return_state=True)
    assert services.openrouter.deleted == [old.hash]
    await check_converged(services, rotation)


async def test_a_scheduled_run_leaves_a_young_key_alone_and_so_does_its_retry(services: Services) -> None:
    """The run of Prefect's scheduler completes and gives the reason; the Retry of a completed run creates no key."""
    rotation = await services.prepare(services.rotation(minimum_age=timedelta(days=7)))
    await run(rotation)
    young = await held(rotation)
    run_id = await scheduled_run(await deploy(rotation))

    state = await attempt(run_id)
    after_schedule = await held(rotation)
    await retry(run_id)
    retried = await attempt(run_id)

    assert state.is_completed()
    assert str(state.message).startswith("Nothing to do: the key")
    assert "younger than its minimum age" in str(state.message)
    assert after_schedule == young
    assert retried.is_completed()
    assert await held(rotation) == young
    await check_converged(services, rotation)


async def scheduled_run(deployment_id: UUID) -> UUID:
    """Return the run that Prefect's scheduler created for a deployment, made due now."""
    now = datetime.now(UTC)
    past = {"start_time": (now - timedelta(days=31)).isoformat(), "end_time": now.isoformat(), "max_runs": 1}
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))
    async with get_client() as client:
        await client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment_id}, json=past)
        runs = await client.read_flow_runs(flow_run_filter=of_it, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    return runs[0].id
