"""People and machines are told: each automation of the repository, against a local receiver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.states import State
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows import rotate
from flows.automations import make_automations, read_files
from sandbox.server import running
from tasks.events import Event, resource
from tasks.rotation import Rotation
from tests.e2e.conftest import World, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.test_worker import everything_stored, spellings

TOLD_WITHIN_SECONDS = 30.0


class Receiver:
    """Somebody who is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.app = Starlette(routes=[Route("/{any:path}", self.hear, methods=["POST"])])

    async def hear(self, request: Request) -> Response:
        """Remember what came."""
        self.heard.append((await request.body()).decode())
        return Response()

    async def waits_for(self, *words: str) -> str:
        """Wait until something with all of these words has come."""
        deadline = time.monotonic() + TOLD_WITHIN_SECONDS
        while time.monotonic() < deadline:
            for text in self.heard:
                if all(word in text for word in words):
                    return text
            await asyncio.sleep(0.1)
        raise AssertionError(f"nobody said {words}, only {self.heard}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()
    with running(receiver.app) as receiver.url:  # type: ignore[attr-defined]
        yield receiver


async def on_call(receiver: Receiver) -> dict[str, str]:
    """A notification block that a person filled in, and the automations that use it."""
    block = CustomWebhookNotificationBlock(
        name="on-call",
        url=receiver.url,  # type: ignore[attr-defined]
        method="POST",
        json_data={"text": "{{subject}} | {{body}}"},
    )
    await block.asave("on-call", overwrite=True)
    return await make_automations({"notify": "custom-webhook/on-call"})


async def test_a_failed_rotation_tells_the_person_on_call(world: World, receiver: Receiver) -> None:
    """The notification holds the run's plain sentence and the way to it."""
    await on_call(receiver)
    rotation = await world.prepare(world.rotation())
    world.openrouter.accounts[0].management_keys.clear()

    await rotate(rotation, return_state=True)

    told = await receiver.waits_for(f"Key rotation {rotation.name} failed", "Retry is safe")
    assert "/runs/flow-run/" in told


async def test_a_crashed_run_tells_the_person_on_call(world: World, receiver: Receiver) -> None:
    """A run whose process died is told as well."""
    await on_call(receiver)
    run_id = await a_run_of_ours(world)

    async with get_client() as client:
        crashed: State[Any] = State(type=StateType.CRASHED, message="Its process died.")
        await client.set_flow_run_state(run_id, crashed, force=True)

    await receiver.waits_for("crashed", "Its process died. Retry is safe")


async def test_a_late_run_tells_the_person_on_call(world: World, receiver: Receiver) -> None:
    """A scheduled run that no worker takes is told as late."""
    await on_call(receiver)
    run_id = await a_run_of_ours(world)

    async with get_client() as client:
        late: State[Any] = State(type=StateType.SCHEDULED, name="Late")
        await client.set_flow_run_state(run_id, late, force=True)

    await receiver.waits_for("is late", "Is a worker running?")


async def a_run_of_ours(world: World) -> Any:
    """A run of a deployment with this project's tag, which no worker takes."""
    deployment_id = await deployed(rotate, await world.prepare(world.rotation()))
    async with get_client() as client:
        return (await client.create_flow_run_from_deployment(deployment_id)).id


async def deployed(what: Any, rotation: Rotation) -> Any:
    """A deployment without a worker."""
    parameters = {"rotation": rotation.model_dump(mode="json")} if what is rotate else {}
    deployment = await what.ato_deployment(name=rotation.name, parameters=parameters, tags=["key-rotation"])
    return await deployment.aapply()


async def test_an_audits_finding_is_told(world: World, receiver: Receiver) -> None:
    """Whoever is on call hears of an orphan."""
    await on_call(receiver)

    emit_event(Event.ORPHAN_FOUND.value, resource("checkout"), payload={"sentence": "The key sk-or-1 is an orphan."})

    await receiver.waits_for("Audit of API keys", "The key sk-or-1 is an orphan.")


@flow(name="restart-consumers")
async def restart_consumers() -> None:
    """What a user would do when a key has changed."""


async def test_a_completed_rotation_starts_a_deployment_and_calls_a_webhook(world: World, receiver: Receiver) -> None:
    """Consumers that read their key only at start can be restarted."""
    rotation = await world.prepare(world.rotation())
    restart = await deployed(restart_consumers, rotation)
    await Webhook(url=SecretStr(receiver.url)).asave("restart", overwrite=True)  # type: ignore[attr-defined]
    await make_automations({"restart": f"restart-consumers/{rotation.name}", "webhook": "webhook/restart"})

    await rotate(rotation, return_state=True)

    told = await receiver.waits_for(f'"rotation": "{rotation.name}"')
    assert world.openrouter.live_keys()[0].label in told
    assert await runs_of(restart) == 1


async def runs_of(deployment_id: Any) -> int:
    """How many runs a deployment has, once it has any."""
    filter_ = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))
    deadline = time.monotonic() + TOLD_WITHIN_SECONDS
    async with get_client() as client:
        while not (found := await client.read_flow_runs(flow_run_filter=filter_)) and time.monotonic() < deadline:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.1)
    return len(found)


async def test_events_hold_no_secret(world: World) -> None:
    """What the server has stored of a rotation's events does not hold any key."""
    rotation = await world.prepare(world.rotation())
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)
    await asyncio.sleep(1)  # events are sent and stored in the background

    stored = everything_stored(world.stack.home)

    assert b"key-rotation.rotation.completed" in stored
    assert [s[:16] for s in world.openrouter.secrets for spelling in spellings(s) if spelling in stored] == []


async def test_making_them_twice_makes_none_twice(world: World, receiver: Receiver) -> None:
    """The command may be repeated: automations are found by name and brought up to date."""
    await on_call(receiver)

    done = await on_call(receiver)

    wanted = {automation["name"] for automation in read_files().values()}
    async with get_client() as client:
        counts = {
            name: len(await client.read_automations_by_name(name)) for name in done if "left out" not in done[name]
        }
    assert set(done) == wanted
    assert set(counts.values()) == {1}
    assert done["key-rotation-failed"] == "brought up to date"


async def test_what_is_not_given_is_left_out_and_said(world: World) -> None:
    """Without a block to notify, only what needs none is made."""
    done = await make_automations({})

    assert done["key-rotation-failed"] == "left out: it needs --notify"
    assert done["key-rotation-crashed-runs"] in {"made", "brought up to date"}


def test_the_command_names_a_block_that_does_not_exist(world: World) -> None:
    """One sentence, and no traceback."""
    with pytest.raises(RuntimeError) as failed:
        world.stack.module("flows.automations", "--notify", "slack-webhook/nobody")

    assert "There is no block slack-webhook/nobody: make it in the dashboard first." in str(failed.value)
    assert "Traceback" not in str(failed.value)
