"""Real processes die: SIGKILL at every effect, SIGSTOP while another run takes over, services that restart."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpx import AsyncClient
from prefect import Flow, get_client
from prefect.blocks.system import Secret
from prefect.exceptions import ObjectNotFound

from blocks.openrouter.lists import ListKind
from flows import remove_rotation, restore_key, retire, rotate
from sandbox.server import Fault, running
from sandbox.stack import WORKER_TYPE
from tasks.model.rotation import Retirement, Rotation
from tasks.model.tries import TRIES_AGAIN
from tests.by_hand import end_overlap, ledger_of, ledger_value
from tests.e2e.conftest import Services, with_kills
from tests.e2e.driver import attempt, begin, begin_rotation, deploy, ended, retry
from tests.e2e.effects import DESTINATIONS, LISTS, REMOVAL, RESTORE, RETIREMENT, ROTATION
from tests.e2e.processes import (
    HELD_SECONDS,
    Effect,
    When,
    app_of,
    check_converged,
    check_no_outage,
    check_nothing_leaked,
    check_one_key,
    ended_by_itself,
    give_the_slot_back,
    held_by,
    keys_of,
    kill_at,
    process,
    retry_after_death,
    rotation_killed_at,
    traces,
    until_held,
)

pytestmark = with_kills
# `make test` kills rotations only, and only after each call: before a call, everything is as after the previous one.
before = pytest.param("before", marks=pytest.mark.exhaustive)
BOTH = pytest.mark.parametrize("when", [before, "after"])
DISABLE = Retirement(revoke="disable-then-delete")
TAKEN_OUT: dict[str, Flow[Any, Any]] = {
    "a retirement": retire,
    "an emergency": rotate,
    "a restore": restore_key,
    "a removal": remove_rotation,
}
"""Other flows that change lists."""


@pytest.fixture(params=["process", pytest.param(WORKER_TYPE, marks=pytest.mark.exhaustive)])
def services(services: Services, request: pytest.FixtureRequest) -> Services:
    """The killed process is one with a single run, or a worker that executes it in a thread."""
    services.worker_type = request.param
    return services


async def with_a_key(services: Services, rotation: Rotation) -> Rotation:
    """Rotate for the first time."""
    await services.prepare(rotation)
    assert (await rotate(rotation, return_state=True)).is_completed()
    return rotation


@BOTH
@pytest.mark.parametrize("service", ROTATION)
async def test_a_rotation_killed_at_any_effect_is_finished_by_its_retry(
    services: Services, service: str, when: When
) -> None:
    """SIGKILL before, or after, each effect in turn: consumers have no outage, and Retry completes the rotation."""
    base = services.rotation()
    rotation = base.model_copy(
        update={
            "key": base.key.model_copy(update={"carry_budget": True, "guardrail_id": services.guardrail()}),
            "destinations": [f"{slug}/{base.name}" for slug in DESTINATIONS[service]],
        }
    )
    await with_a_key(services, rotation)
    for effect in ROTATION[service]:
        run_id = await rotation_killed_at(services, rotation, effect, when)

        await check_no_outage(services, rotation, effect)
        healed = await retry_after_death(run_id, rotation.name)

        assert healed.is_completed(), (effect, healed)
        await check_one_key(services, rotation, effect)
        current = (await ledger_of(rotation.name)).current
        assert current is not None, effect
        assert run_id in (current.made_by, current.rotated_by), effect
    check_nothing_leaked(services)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_first_rotation_killed_as_it_makes_the_ledger_is_finished_by_its_retry(
    services: Services, when: When
) -> None:
    """The key that a person has put there works until the rotation's own key replaces it."""
    rotation = await services.prepare(services.rotation())
    by_hand = services.openrouter.add_key(services.openrouter.accounts[0], {"name": "by hand"})
    await Secret(value=by_hand.secret).asave(rotation.name, overwrite=True)
    run_id = await begin_rotation(rotation)

    await kill_at(services, run_id, Effect("prefect", "POST /api/variables/"), when)
    await check_no_outage(services, rotation)
    healed = await retry_after_death(run_id, rotation.name)

    assert healed.is_completed(), healed
    assert services.openrouter.is_live(by_hand.secret)
    await check_converged(services, rotation)


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize("method", ["PATCH", "DELETE"], ids=["that disables", "that deletes"])
async def test_a_retirement_killed_at_any_effect_is_finished_by_its_retry(
    services: Services, method: str, when: When
) -> None:
    """SIGKILL before, or after, each effect in turn: the superseded key is revoked, and the current one still works."""
    retirement = DISABLE if method == "PATCH" else Retirement()
    rotation = await with_a_key(services, services.rotation(retirement=retirement, overlap=timedelta(hours=1)))
    for effect in RETIREMENT:
        assert (await rotate(rotation, return_state=True)).is_completed()
        former = services.openrouter.keys[(await ledger_of(rotation.name)).superseded[-1].hash]
        await end_overlap(rotation.name)
        run_id = await begin(retire, {"rotation": rotation.name})

        await kill_at(services, run_id, effect._replace(request=effect.request.format(method)), when)
        await check_no_outage(services, rotation, effect)
        healed = await retry_after_death(run_id, rotation.name)

        assert healed.is_completed(), (effect, healed)
        assert not services.openrouter.is_live(former.secret), effect
        assert {key.hash for key in keys_of(services, rotation)} == (await ledger_of(rotation.name)).hashes(), effect
        await check_no_outage(services, rotation, effect)
    await end_overlap(rotation.name)
    assert (await retire(rotation.name, return_state=True)).is_completed()
    await check_converged(services, rotation)


@pytest.mark.exhaustive
@BOTH
async def test_a_restore_killed_at_any_effect_is_finished_by_its_retry(services: Services, when: When) -> None:
    """SIGKILL before, or after, each effect in turn: consumers always have a working key, finally the former one."""
    rotation = await with_a_key(services, services.rotation(destinations=["vault-secret/restored"], retirement=DISABLE))
    assert (await rotate(rotation, return_state=True)).is_completed()
    for effect in RESTORE:
        ledger = await ledger_of(rotation.name)
        former, between = ledger.superseded[-1], ledger.current
        run_id = await begin(restore_key, {"rotation": rotation.name})

        await kill_at(services, run_id, effect, when)
        await check_no_outage(services, rotation, effect)
        healed = await retry_after_death(run_id, rotation.name)

        assert healed.is_completed(), (effect, healed)
        assert await held_by(rotation) == {services.openrouter.keys[former.hash].secret}, effect
        ledger = await ledger_of(rotation.name)
        assert between is not None, effect
        assert ledger.current is not None, effect
        assert (ledger.current.hash, [key.hash for key in ledger.superseded]) == (former.hash, [between.hash]), effect
        await check_no_outage(services, rotation, effect)
    check_nothing_leaked(services)


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize("effect", REMOVAL, ids=lambda effect: effect.request)
async def test_a_removal_killed_at_any_effect_is_finished_by_its_retry(
    services: Services, effect: Effect, when: When
) -> None:
    """SIGKILL before, or after, each effect: after Retry, no key, no ledger and no deployment is left."""
    rotation = await with_a_key(services, services.rotation(overlap=timedelta(hours=1)))
    assert (await rotate(rotation, return_state=True)).is_completed()
    await deploy(rotation)
    run_id = await begin(remove_rotation, {"rotation": rotation.name, "confirm_name": rotation.name})

    await kill_at(services, run_id, effect, when)
    healed = await retry_after_death(run_id, rotation.name)

    assert healed.is_completed(), healed
    assert keys_of(services, rotation) == []
    assert await ledger_value(rotation.name) is None
    async with get_client() as client:
        with pytest.raises(ObjectNotFound):
            await client.read_deployment_by_name(f"rotate/{rotation.name}")
    check_nothing_leaked(services)


def named_in_lists(services: Services, secrets: set[str]) -> dict[ListKind, dict[str, Any]]:
    """Add a list of each kind that names the consumers' keys, and a key of somebody else."""
    account = services.openrouter.accounts[0]
    named = [services.openrouter.by_secret[secret].hash for secret in sorted(secrets)]
    named.append(services.openrouter.add_key(account, {"name": "somebody else's"}).hash)
    add = {ListKind.BYOK: services.openrouter.add_credential, ListKind.BROADCAST: services.openrouter.add_broadcast}
    return {kind: add[kind](account, account.workspaces[0], **{kind.field: list(named)}) for kind in ListKind}


async def check_lists(
    services: Services, rotation: Rotation, lists: dict[ListKind, dict[str, Any]], during: object
) -> None:
    """Verify that each list names every key that a consumer can read; for the BYOK credential, by using the key."""
    held = await held_by(rotation)
    for kind, which in lists.items():
        assert {services.openrouter.by_secret[secret].hash for secret in held} <= set(which[kind.field]), (during, kind)
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{services.openrouter_url}/chat/completions?byok={lists[ListKind.BYOK]['id']}"
    async with AsyncClient() as client:
        answers = [await client.post(url, json=body, headers={"Authorization": f"Bearer {one}"}) for one in held]
    assert [answer.status_code for answer in answers] == [200] * len(held), during


def check_no_dead_key_listed(services: Services, lists: dict[ListKind, dict[str, Any]], during: object) -> None:
    """Verify that no list names a dead key, because OpenRouter would refuse every later change of it."""
    live = {key.hash for key in services.openrouter.live_keys()}
    for kind, which in lists.items():
        assert set(which[kind.field]) <= live, (during, kind)


@BOTH
async def test_a_rotation_killed_at_any_change_of_a_list_is_finished_by_its_retry(
    services: Services, when: When
) -> None:
    """SIGKILL before, or after, each PATCH: consumers can always use the provider's key, and no list has a dead key."""
    base = services.rotation(destinations=["vault-secret/listed"])
    rotation = base.model_copy(update={"key": base.key.model_copy(update={"inherit": True})})
    await with_a_key(services, rotation)
    lists = named_in_lists(services, await held_by(rotation))
    for effect in LISTS:
        run_id = await rotation_killed_at(services, rotation, effect, when)

        await check_lists(services, rotation, lists, effect)
        healed = await retry_after_death(run_id, rotation.name)

        assert healed.is_completed(), (effect, healed)
        await check_one_key(services, rotation, effect)
        await check_lists(services, rotation, lists, effect)
        check_no_dead_key_listed(services, lists, effect)
    check_nothing_leaked(services)


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize("kind", ListKind, ids=lambda kind: kind.path.partition("/")[0])
@pytest.mark.parametrize("what", TAKEN_OUT)
async def test_what_changes_a_list_and_is_killed_there_is_finished_by_its_retry(
    services: Services, what: str, kind: ListKind, when: When
) -> None:
    """SIGKILL before, or after, the PATCH: after Retry, the lists name the consumers' key, and no dead one."""
    base = services.rotation(destinations=["vault-secret/listed"], overlap=timedelta(hours=1))
    rotation = base.model_copy(update={"key": base.key.model_copy(update={"inherit": True})})
    await with_a_key(services, rotation)
    lists = named_in_lists(services, await held_by(rotation))
    assert (await rotate(rotation, return_state=True)).is_completed()
    parameters: dict[str, Any] = {"rotation": rotation.name}
    match what:
        case "a retirement":
            await end_overlap(rotation.name)
        case "an emergency":
            parameters = {"rotation": rotation.model_dump(mode="json"), "emergency": True}
        case "a restore":
            superseded = (await ledger_of(rotation.name)).superseded[-1].hash
            for each, which in lists.items():
                which[each.field].remove(superseded)
        case _:
            await deploy(rotation)
            parameters["confirm_name"] = rotation.name
    run_id = await begin(TAKEN_OUT[what], parameters)

    await kill_at(services, run_id, Effect("openrouter", f"PATCH /{kind.path}/"), when)
    healed = await retry_after_death(run_id, rotation.name)

    assert healed.is_completed(), healed
    check_no_dead_key_listed(services, lists, what)
    if what != "a removal":
        await check_lists(services, rotation, lists, what)
    check_nothing_leaked(services)


async def test_a_run_that_lost_its_place_stops_before_its_next_write(services: Services) -> None:
    """A run stopped before it publishes, and continued after another one has completed, writes and revokes nothing."""
    rotation = await with_a_key(services, services.rotation(destinations=["vault-secret/stopped"]))
    fault = Fault("after", "GET", "/key$", status=0, delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(fault)
    run_id = await begin_rotation(rotation)
    with process(services, run_id) as late:
        await until_held(fault)
        os.kill(late.pid or 0, signal.SIGSTOP)
        await give_the_slot_back(rotation.name)
        assert (await rotate(rotation, return_state=True)).is_completed()
        before = await traces(services, rotation)

        fault.delay = 0
        os.kill(late.pid or 0, signal.SIGCONT)
        await ended_by_itself(late)

    assert await traces(services, rotation) == before
    stopped = await ended(run_id)
    assert stopped.state_name == TRIES_AGAIN
    assert "has taken over" in str(stopped.state.message if stopped.state else "")
    await check_converged(services, rotation)


async def point_at(services: Services, service: str, url: str) -> None:
    """Point the rotations that are prepared from now on to another address of a service."""
    if service == "openrouter":
        await services.connect(f"{url}/api/v1")
    else:
        services.vault_url = url


@pytest.mark.parametrize(("service", "path"), [("openrouter", "/keys$"), ("vault", "/data/")])
async def test_after_a_service_has_stopped_in_mid_run_and_come_back_retry_finishes_the_rotation(
    services: Services, service: str, path: str
) -> None:
    """The service stops during a call, whose answer is lost; once it is up again, Retry converges."""
    app = app_of(services, service)
    with running(app) as url:
        await point_at(services, service, url)
        rotation = await with_a_key(services, services.rotation(destinations=[f"vault-secret/{service}-stopped"]))
        at_work = app.state.faults.add(Fault("after", "POST", path, status=0, delay=HELD_SECONDS, times=1))
        run_id = await begin_rotation(rotation)
        first_attempt = asyncio.create_task(attempt(run_id))
        await until_held(at_work)
    failed = await first_attempt
    with running(app, urlsplit(url).port or 0):
        await retry(run_id)
        healed = await attempt(run_id)

        assert failed.is_failed()
        assert "Retry is safe" in str(failed.message)
        assert healed.is_completed(), healed
        await check_converged(services, rotation)


async def test_a_server_that_restarts_in_mid_run_does_no_harm(services: Services) -> None:
    """The Prefect server stops and restarts while a run is running: that run, or its Retry, converges."""
    rotation = await with_a_key(services, services.rotation(destinations=["vault-secret/restart"]))
    fault = Fault("after", "POST", "/keys$", status=0, delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(fault)
    run_id = await begin_rotation(rotation)
    with process(services, run_id) as started:
        await until_held(fault)
        await asyncio.to_thread(services.stack.restart_server)
        fault.delay = 0
        await ended_by_itself(started)

    healed = await retry_after_death(run_id, rotation.name)

    assert healed.is_completed(), healed
    await check_converged(services, rotation)
