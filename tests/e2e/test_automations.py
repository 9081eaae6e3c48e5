"""People and machines are notified: each automation of the repository, against a local receiver."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from apprise.plugins.slack import NotifySlack
from prefect import flow, get_client
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.flow_engine import run_flow_async
from prefect.states import Scheduled
from pydantic import SecretStr

from flows import audit, retire, rotate
from flows.automations import FOLDER, make_automations
from sandbox.server import Fault
from tasks.model.events import Event, resource
from tests.e2e.conftest import Services, with_pages
from tests.e2e.driver import begin_rotation, ended
from tests.e2e.leaks import leaks
from tests.e2e.processes import HELD_SECONDS, process, until_held
from tests.e2e.receivers import TOLD_WITHIN_SECONDS, Receiver, mailbox, web_receiver

pytestmark = with_pages
RESOURCE = "prefect.resource.id"
OF_ROTATE = {
    RESOURCE: "prefect.flow.rotate",
    "prefect.resource.role": "flow",
    "prefect.resource.name": "rotate",
}
"""How a run's event names its flow."""


async def scheduled(what: Any, parameters: dict[str, Any], name: str, at: datetime | None = None) -> FlowRun:
    """Return a run of a new deployment without a worker; its `parameters` are not validated, as through the API."""
    deployment = await what.ato_deployment(name=name, parameters=parameters, enforce_parameter_schema=False)
    async with get_client() as client:
        return await client.create_flow_run_from_deployment(
            await deployment.aapply(), state=Scheduled(scheduled_time=at)
        )


async def do(what: Any, parameters: dict[str, Any], name: str) -> None:
    """Execute a run of a new deployment in this process."""
    run = await scheduled(what, parameters, name)
    await run_flow_async(what, flow_run=run, parameters=run.parameters, return_type="state")


async def test_a_failed_rotation_tells_the_person_on_call(services: Services, on_call: Receiver) -> None:
    """The notification contains the run's sentence and a link that works in the current dashboard."""
    rotation = await services.prepare(services.rotation())
    services.openrouter.accounts[0].management_keys.clear()

    await do(rotate, {"rotation": rotation.model_dump(mode="json")}, rotation.name)

    told = await on_call.waits_for(f"rotate/{rotation.name} failed", "Retry is safe")
    assert f"{services.stack.url}/v2/runs/flow-run/" in told


async def test_the_person_on_call_hears_of_no_failure_that_passes_and_of_an_end_only_after_one_that_did_not(
    services: Services, on_call: Receiver
) -> None:
    """A run with a scheduled try is silent; after a failure that needed a person, its completed run is notified."""
    rotation = await services.prepare(services.rotation())
    parameters = {"rotation": rotation.model_dump(mode="json")}
    await services.connect("http://127.0.0.1:9/api/v1")
    await do(rotate, parameters, rotation.name)
    await services.connect(services.openrouter_url)
    keys = set(services.openrouter.accounts[0].management_keys)
    services.openrouter.accounts[0].management_keys.clear()
    await do(rotate, parameters, rotation.name)
    services.openrouter.accounts[0].management_keys.update(keys)
    await do(rotate, parameters, rotation.name)

    await on_call.waits_for(f"{rotation.name} recovered", "Rotated: the key")

    # Prefect acts again if it could not record that it had acted.
    failures = [text for text in on_call.heard if f"rotate/{rotation.name} failed" in text]
    assert {"answered 401" in text for text in failures} == {True}


async def test_a_deployment_with_wrong_parameters_tells_the_person_on_call(
    services: Services, on_call: Receiver
) -> None:
    """The notification names the wrong field, even if the run could not tell its rotation."""
    await do(rotate, {"rotation": {"name": "checkout"}}, "spoiled")

    await on_call.waits_for("rotate/spoiled failed", "rotation.connection")


async def test_a_failed_retirement_says_which_rotation_it_is_about(services: Services, on_call: Receiver) -> None:
    """All retirements share one deployment, so the notification must name the rotation."""
    await do(retire, {"rotation": "nobody"}, "retire")

    await on_call.waits_for("retire/retire failed", "nobody: ", "nobody does not exist or has never run")


async def test_a_crashed_run_tells_the_person_on_call(services: Services, on_call: Receiver) -> None:
    """A run whose process has died is notified like a failed one."""
    run = await scheduled(retire, {"rotation": "nobody"}, "dying")

    async with get_client() as client:
        crashed: State[Any] = State(type=StateType.CRASHED, message="Its process died.")
        await client.set_flow_run_state(run.id, crashed, force=True)

    await on_call.waits_for("retire/dying crashed", "Its process died. Retry is safe.")


def quicker(folder: Path) -> Path:
    """Return the automation for crashed runs with the shortest silence that Prefect allows."""
    name = "crashed-runs.yaml"
    (folder / name).write_text((FOLDER / name).read_text().replace("within: 90", "within: 10"))
    return folder


async def test_a_run_that_hangs_is_marked_as_crashed_and_nobody_elses_is(
    services: Services, no_automations: None, tmp_path: Path
) -> None:
    """A rotation without heartbeats is marked as crashed, but an equally silent run of a foreign flow is not."""
    await make_automations({}, quicker(tmp_path))
    rotation, noticed = await services.prepare(services.rotation()), asyncio.Event()
    creation = Fault(method="POST", path="/keys", delay=HELD_SECONDS, times=1)
    services.openrouter_app.state.faults.add(creation)

    @flow(name="somebody-elses")
    async def somebody_elses() -> UUID:
        await noticed.wait()
        return FlowRunContext.get().flow_run.id  # type: ignore[union-attr]

    foreign = asyncio.create_task(somebody_elses())
    run_id = await begin_rotation(rotation)
    with process(services, run_id) as hung:
        await until_held(creation)
        os.kill(hung.pid or 0, signal.SIGSTOP)
        lost = await ended(run_id)

    noticed.set()
    assert lost.state_name == "Crashed"
    async with get_client() as client:
        assert "Crashed" not in [state.name for state in await client.read_flow_run_states(await foreign)]


async def test_a_heartbeat_that_comes_late_marks_no_run_that_has_ended(
    services: Services, no_automations: None, tmp_path: Path
) -> None:
    """The automation notices the silence after the heartbeat, but the run keeps its final state."""
    await make_automations({}, quicker(tmp_path))
    rotation = await services.prepare(services.rotation())
    names: dict[UUID, str | None] = {}
    for settings in (rotation.model_dump(mode="json"), {}):
        run = await scheduled(rotate, {"rotation": settings}, rotation.name)
        await run_flow_async(rotate, flow_run=run, parameters=run.parameters, return_type="state")
        async with get_client() as client:
            names[run.id] = (await client.read_flow_run(run.id)).state_name

    for run_id in names:
        emit_event("prefect.flow-run.heartbeat", {RESOURCE: f"prefect.flow-run.{run_id}"}, related=[OF_ROTATE])

    for run_id, name in names.items():
        assert "already in terminal state" in await reason_of_the_refused_action_on(run_id)
        async with get_client() as client:
            assert (await client.read_flow_run(run_id)).state_name == name
    assert list(names.values()) == ["Completed", "Failed"]


async def reason_of_the_refused_action_on(run_id: UUID) -> str:
    """Return why the automation could not change the state of a run, once it has tried."""
    wanted = {"filter": {"event": {"name": ["prefect.automation.action.failed"]}}}
    deadline = time.monotonic() + TOLD_WITHIN_SECONDS
    async with get_client() as client:
        while time.monotonic() < deadline:
            for event in (await client.request("POST", "/events/filter", json=wanted)).json()["events"]:
                if str(run_id) in json.dumps(event):
                    return str(event["payload"]["reason"])
            await asyncio.sleep(0.1)
    raise AssertionError("the automation was not refused")


async def test_a_late_run_tells_the_person_on_call(services: Services, on_call: Receiver) -> None:
    """The server notices a run that no worker takes, and the person on call is notified."""
    await scheduled(retire, {"rotation": "nobody"}, "waiting", at=datetime.now(UTC) - timedelta(minutes=1))

    await on_call.waits_for(
        "retire/waiting is late", "Check that a worker is running and that its work pool is not paused."
    )


async def test_an_audit_that_found_something_tells_the_person_on_call(services: Services, on_call: Receiver) -> None:
    """One notification per audit gives the number of findings, with the most severe one first."""
    services.openrouter.accounts[0].management_keys.clear()

    await audit(services.connection, return_state=True)

    await on_call.waits_for("Key rotation: an audit requires action", "Action required: 1 finding.")


async def test_an_e_mail_comes_by_smtp(services: Services, no_automations: None) -> None:
    """Prefect's Slack block passes other URLs to Apprise, which supports SMTP."""
    async with mailbox() as receiver:
        block = SlackWebhook(
            url=SecretStr(f"mailto://{receiver.url}?from=prefect@example.com&to=on-call@example.com&mode=insecure")
        )
        await block.asave("mail", overwrite=True)
        await make_automations({"notify": "slack-webhook/mail"})

        await do(retire, {"rotation": "nobody"}, "retire")

        await receiver.waits_for(
            "To: on-call@example.com", "retire/retire failed", "nobody does not exist or has never run"
        )


async def test_slack_is_told(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request to Slack's webhook contains subject and body; only its host is replaced by this machine."""
    hook = "T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"
    with web_receiver(answer="ok") as receiver:
        monkeypatch.setattr(NotifySlack, "webhook_url", receiver.url)
        block = SlackWebhook(url=SecretStr(f"https://hooks.slack.com/services/{hook}"))

        await block.anotify("publish failed. Retry is safe.", "Key rotation: rotate/checkout failed")

        told = json.loads(await receiver.waits_for("rotate/checkout failed"))
    assert receiver.paths == [f"/{hook}"]
    assert told["attachments"][0]["title"] == "Key rotation: rotate/checkout failed"
    assert told["attachments"][0]["text"] == "publish failed. Retry is safe."


@flow(name="restart-consumers")
async def restart_consumers() -> None:
    """Stand for a user's flow that reacts to a changed key."""


async def test_a_completed_rotation_starts_a_deployment_and_calls_a_webhook(
    services: Services, no_automations: None
) -> None:
    """This restarts consumers that read their key only at their start."""
    rotation = await services.prepare(services.rotation())
    deployment = await restart_consumers.ato_deployment(name=rotation.name)
    restart = await deployment.aapply()
    with web_receiver() as receiver:
        await Webhook(url=SecretStr(receiver.url)).asave("restart", overwrite=True)
        await make_automations({"restart": f"restart-consumers/{rotation.name}", "webhook": "webhook/restart"})

        await rotate(rotation, return_state=True)

        told = await receiver.waits_for(f'"rotation": "{rotation.name}"')
    assert services.openrouter.live_keys()[0].label in told
    assert await runs_of(restart) == 1


async def runs_of(deployment_id: Any) -> int:
    """Return the number of a deployment's runs, once there is one."""
    filter_ = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))
    deadline = time.monotonic() + TOLD_WITHIN_SECONDS
    async with get_client() as client:
        while not (found := await client.read_flow_runs(flow_run_filter=filter_)) and time.monotonic() < deadline:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.1)
    return len(found)


async def test_events_hold_what_is_documented_and_no_secret(services: Services) -> None:
    """Two rotations and a failure emit every step with the documented fields, and none of them contains a key."""
    # In Vault, because a busy Prefect server can refuse a write of a Prefect secret, which would keep the former key.
    rotation = await services.prepare(services.rotation(destinations=["vault-secret/told"]))
    await rotate(rotation, return_state=True)
    await rotate(rotation, return_state=True)
    services.openrouter.accounts[0].management_keys.clear()
    await rotate(rotation, return_state=True)

    told = await events_until(rotation.name, Event.ROTATION_NEEDS_PERSON)

    steps = [Event.KEY_CREATED, Event.KEY_VERIFIED, Event.KEY_PUBLISHED, Event.ROTATION_COMPLETED]
    ending = [Event.KEY_REVOKED, Event.ROTATION_FAILED, Event.ROTATION_NEEDS_PERSON]
    assert [name for name, _ in told] == [*steps, *steps, *ending]
    payloads = {event.value: event.payload for event in Event}
    assert all(set(payload) == {"rotation", *payloads[name]} for name, payload in told)
    assert leaks(services) == []


async def events_until(rotation: str, last: Event) -> list[tuple[str, dict[str, str]]]:
    """Return a rotation's events on the server, oldest first, once the given one has arrived."""
    wanted = {"filter": {"resource": {"id": [resource(rotation)["prefect.resource.id"]]}, "order": "ASC"}}
    deadline = time.monotonic() + TOLD_WITHIN_SECONDS
    found: list[tuple[str, dict[str, str]]] = []
    async with get_client() as client:
        while last not in [name for name, _ in found] and time.monotonic() < deadline:
            answer = await client.request("POST", "/events/filter", json=wanted)
            found = [(event["event"], event["payload"]) for event in answer.json()["events"]]
            await asyncio.sleep(0.1)
    return found
